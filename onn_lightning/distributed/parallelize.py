"""`parallelize`: FSDP2 around an `OmniModule` - one group for each block, one for what stands around them.

Notable:
- One block after another gets its values and is sharded at once: a rank never holds more than one whole block
  beside its shards, where the network was built on the meta device (`materialize.py`).
- Embedders, heads and positions are one group, that of the root, whole from the forward pass to the end of
  the backward pass: a head may share its table with an embedder (`CharacterHead`), and tied parameters must
  lie in one group. What reads a table without calling its module (a head's `weight`) finds it whole.
- Weights are stored, gathered and reduced as they are, in float32. An SBL makes its keys mu * softplus(sigma)
  in float32 and rounds them once, to autocast's type; where blocks are gathered in bfloat16, mu and sigma
  are rounded before. The optimizer, the KL term and the average of gradients stay in float32 either way.
- With tensor parallelism the neurons of a block are shared out first (`tensor_parallel.py`), and each rank's
  part is sharded over the data-parallel ranks. What stands around the blocks is sharded over all ranks: those
  that share neurons compute it from the same tokens, and the average over them keeps its copies the same.
- All ranks begin with the weights of rank 0, whatever their seeds.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from onn_lightning.distributed.materialize import Draws, is_on_meta, materialize
from onn_lightning.distributed.tensor_parallel import parallelize_block, require_divisible
from onn_lightning.modality import Modality
from onn_lightning.network import surroundings
from onn_lightning.nn import AdditivePositions, MoIETrunk


@dataclass(frozen=True)
class Sharding:
    """How the blocks of a network are sharded.

    Args:
        reshard_after_forward: free a block's gathered weights after its forward pass and gather them again
            for its backward pass; False: keep them in between.
        gather_dtype: type in which a block's weights are gathered and its gradients handed to their average,
            which is taken in float32; None: their own.
    """

    reshard_after_forward: bool = True
    gather_dtype: torch.dtype | None = None

    @property
    def policy(self) -> MixedPrecisionPolicy:
        """Of a block; activations keep the type that they come in."""
        reduce_dtype = None if self.gather_dtype is None else torch.float32
        return MixedPrecisionPolicy(self.gather_dtype, reduce_dtype, cast_forward_inputs=False)


class Parts(Protocol):
    """What `parallelize` has to know of an `OmniModule`, which is a module besides."""

    trunk: MoIETrunk
    positions: AdditivePositions
    embedders: nn.ModuleDict
    heads: nn.ModuleDict
    modalities: dict[str, Modality]


def parallelize(
    parts: Parts, mesh: DeviceMesh | None, sharding: Sharding | None = None, draws: Draws | None = None
) -> None:
    """Make a network ready for training: values for what has none, shards where there is a mesh.

    Nothing happens to a network that is ready.

    Args:
        parts: an `OmniModule`.
        mesh: "data_parallel", over which weights are sharded, and perhaps "tensor_parallel", over which
            neurons are shared out before; None: values alone.
        sharding: how.
        draws: of the time when it was built on the meta device; None: it was not.
    Raises:
        MisconfigurationException: for a parameter that cannot be sharded.
        ValueError: if neurons or heads do not divide by the ranks that share them out.
    """
    assert isinstance(parts, nn.Module)
    sharding = sharding or Sharding()
    if isinstance(parts, FSDPModule) or (mesh is None and not is_on_meta(parts)):
        return
    tensor_parallel = None
    if mesh is not None:
        _require_dimensions(parts)
        if draws is not None:
            _from_first_rank(draws.state, mesh)
        tensor_parallel = _tensor_parallel(mesh)
        if tensor_parallel is not None:
            require_divisible(parts.trunk, tensor_parallel.size(), mesh["data_parallel"].size())
    with nullcontext() if draws is None else draws.again():
        for block in parts.trunk.blocks:
            if is_on_meta(block):
                materialize(block)
            elif mesh is not None:
                _all_from_first_rank(block, mesh)
            if tensor_parallel is not None:
                parallelize_block(block, tensor_parallel)
            if mesh is not None:
                _shard(block, mesh["data_parallel"], sharding.reshard_after_forward, sharding.policy)
        if is_on_meta(parts):
            around = surroundings(parts.trunk.config, list(parts.modalities.values()))
            parts.positions, parts.embedders, parts.heads = around.positions, around.embedders, around.heads
    if mesh is not None:
        _all_from_first_rank(parts, mesh)
        _shard(parts, _all_ranks(mesh), False, MixedPrecisionPolicy(cast_forward_inputs=False))


def free_gathered(module: nn.Module) -> None:
    """Leave nothing but shards, as a backward pass does; a forward pass without one leaves whole weights.

    Whoever then took hold of a parameter would hold memory that is freed later.

    Args:
        module: sharded or not.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _tensor_parallel(mesh: DeviceMesh) -> DeviceMesh | None:
    """Its dimension of that name, where more than one rank is in it."""
    if "tensor_parallel" not in (mesh.mesh_dim_names or ()):
        return None
    return mesh["tensor_parallel"] if mesh["tensor_parallel"].size() > 1 else None


def _all_ranks(mesh: DeviceMesh) -> DeviceMesh:
    """All ranks of a mesh in one dimension."""
    if _tensor_parallel(mesh) is None:
        return mesh["data_parallel"]
    return mesh["data_parallel", "tensor_parallel"]._flatten("all_ranks")


def _shard(module: nn.Module, mesh: DeviceMesh, reshard: bool, policy: MixedPrecisionPolicy) -> None:
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)


def _require_dimensions(module: nn.Module) -> None:
    scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise MisconfigurationException(
            f"FSDP2 cannot shard parameters without a dimension, which {', '.join(scalars)} are: make each a "
            "vector of one element, nn.Parameter(torch.ones(1))"
        )


def _all_from_first_rank(module: nn.Module, mesh: DeviceMesh) -> None:
    """The values of rank 0 for everything in a module that is not sharded yet."""
    for tensor in chain(module.parameters(), module.buffers()):
        if not isinstance(tensor, DTensor):
            _from_first_rank(tensor.detach(), mesh)


def _from_first_rank(tensor: Tensor, mesh: DeviceMesh) -> None:
    sent = tensor.to(mesh.device_type)
    dist.broadcast(sent, src=0)
    tensor.copy_(sent)
