"""Tensor parallelism: the neurons of every SBL, and the heads of attention, shared out over ranks.

Notable:
- A rank holds N / R of the neurons of every SBL: their rows of mu and sigma, their gates and biases. So a
  score is one dot product on one rank, and what fires is what would fire without tensor parallelism. (Shards
  of the input's channels would give parts of scores, which have to be summed before a neuron can fire.)
- Parameters are DTensors, Shard(0) over the ranks, with the names and shapes of the whole: FSDP2 shards them
  further, checkpoints fit any number of ranks, optimizers see rows.
- Between SBLs every rank has the whole row: x comes in whole, the output [M, N / R] is gathered along the
  neurons. In backward each rank takes its neurons' part of the gradient, and the parts of grad_x are summed.
- S of every neuron is known to all ranks: the gate loss needs the sum over a whole layer. The small gathers
  of S and of the activation are waited for only where they are used.
- Attention computes H / R heads a rank, with the keys and values (and the cache) of those alone.
- Everything else - norms, embedders, heads, losses - is computed by every rank alike, from the same batch.
  So is what a layer keeps of its input for backward: shared out are its scores and values alone.

What a block moves for each token, in numbers, each times (R - 1) / R, with as many key heads as heads and F
neurons in the MoIE (8/3 D): forward 6 D + F are gathered; backward 3 D are gathered and 3 D + F summed, which
moves them twice. That is 8.7 D and 14.3 D. A dense block in Megatron's split (Shoeybi et al. 2019, arXiv
1909.08053) moves 4 D and 4 D: it needs no whole row between two layers, as an SBL's gates and inner norms do.

Letters: R ranks of tensor parallelism, N neurons, M tokens, D channels, H heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from onn_lightning.nn import DynSIHA, MoIETrunk, SparseBayesianLinear
from onn_lightning.nn.attention import KVCache
from onn_lightning.nn.sbl import SBLOutput


def parallelize_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Share out the neurons and heads of one block, in place; `fully_shard` comes afterwards.

    Args:
        block: a `Block` that holds the same values on all ranks; `require_divisible` has seen its trunk.
        mesh: one-dimensional, of the ranks that share the trunk.
    """
    # classes are exchanged, as fully_shard does: whoever holds a layer goes on holding it
    for module in block.modules():
        if isinstance(module, SparseBayesianLinear):
            module.__class__ = NeuronParallelSBL
            assert isinstance(module, NeuronParallelSBL)
            module.shard(mesh)
        elif isinstance(module, DynSIHA):
            module.__class__ = HeadParallelDynSIHA
            assert isinstance(module, HeadParallelDynSIHA)
            module.mesh = mesh


def require_divisible(trunk: MoIETrunk, ranks: int, data_shards: int) -> None:
    """See that the neurons of every SBL, and the heads, can be shared out evenly.

    FSDP2 divides a rank's neurons further. Where they do not divide evenly it says nothing, but neither
    DTensor nor a checkpoint would find the whole again.

    Raises:
        ValueError: if they cannot; names all that do not divide.
    """
    shards, heads = ranks * data_shards, trunk.config.num_heads
    misfits = [f"num_heads {heads} by {ranks}"] if heads % ranks else []
    kinds = dict.fromkeys((name.partition(".")[2], sbl.out_features) for name, sbl in trunk.sbl_layers())
    misfits += [f"the {size} neurons of {kind} by {shards}" for kind, size in kinds if size % shards]
    if misfits:
        raise ValueError(
            f"tensor parallelism over {ranks} ranks, each sharded over {data_shards}: cannot divide "
            f"{', '.join(misfits)}; change the sizes of the trunk, tensor_parallel_size or data_parallel_size"
        )


class NeuronParallelSBL(SparseBayesianLinear):
    """An SBL of which this rank holds and computes some neurons; input and output are whole.

    `parallelize_block` makes it out of a whole layer.
    """

    mesh: DeviceMesh

    def shard(self, mesh: DeviceMesh) -> None:
        """Keep this rank's rows of every parameter, as DTensors of the whole shape."""
        self.mesh = mesh
        self._gather_surprise = self._gathered_rows
        for name, parameter in list(self.named_parameters(recurse=False)):
            own = _part(parameter.detach(), 0, mesh).to(mesh.device_type, copy=True)
            sharded = DTensor.from_local(
                own,
                mesh,
                [Shard(0)],
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            self.register_parameter(name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))

    def _neurons_here(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mu_weight, sigma_weight, gate_param, mu_bias = (
            _own(parameter) for parameter in super()._neurons_here()
        )
        return mu_weight, sigma_weight, gate_param, mu_bias

    def _gathered_rows(self, rows: Tensor) -> Tensor:
        """[N / R] -> [N]; not waited for."""
        return collectives.all_gather_single(rows, 0, self.mesh)

    def observe(
        self,
        x: Tensor,
        surprise: Tensor | None = None,
        fired: Tensor | None = None,
        pack_fired: bool = False,
    ) -> SBLOutput:
        """As that of a whole SBL: whole x in, whole output, surprise and activation out.

        Packed bits of what fired are those of this rank's neurons.
        """
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # its gradient travels in this type, too
        seen = super().observe(_SumGradient.apply(x, self.mesh), surprise, fired, pack_fired)
        return replace(
            seen,
            output=_Gather.apply(seen.output, -1, self.mesh),
            activation=None if seen.activation is None else self._gathered_rows(seen.activation),
        )


class HeadParallelDynSIHA(DynSIHA):
    """Attention that computes some of the heads on this rank; `parallelize_block` makes it."""

    mesh: DeviceMesh

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        q, k, v = _OwnHeads.apply(q, k, v, self.mesh)
        return _Gather.apply(super()._attend(q, k, v, rotary, mask, cache, layer), 1, self.mesh)


# ---- what is moved ----------------------------------------------------------------------------------


def _own(parameter: Tensor) -> Tensor:
    """This rank's rows, with a gradient that is sharded like the parameter."""
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def _gathered(part: Tensor, dim: int, mesh: DeviceMesh) -> Tensor:
    """The ranks' parts of a tensor, side by side along `dim`."""
    parts = collectives.all_gather_single(part.contiguous(), 0, mesh)
    return torch.cat(parts.chunk(mesh.size()), dim)


def _part(whole: Tensor, dim: int, mesh: DeviceMesh) -> Tensor:
    """This rank's part of a tensor along `dim`."""
    return whole.chunk(mesh.size(), dim)[mesh.get_local_rank()]


class _SumGradient(torch.autograd.Function):
    """A whole tensor, of whose gradient every rank makes a part of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return collectives.wait_tensor(collectives.all_reduce(grad, "sum", ctx.mesh)), None


class _Gather(torch.autograd.Function):
    """The ranks' parts along `dim`, side by side; the gradient of the whole is the same on all ranks."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, mesh: DeviceMesh) -> Tensor:
        ctx.dim, ctx.mesh = dim, mesh
        return _gathered(part, dim, mesh)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _part(grad, ctx.dim, ctx.mesh), None, None


class _OwnHeads(torch.autograd.Function):
    """This rank's heads of whole queries, keys and values; their gradients are gathered in one go.

    Where the key heads do not divide by the ranks, every query head gets a copy of its key head.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mesh: DeviceMesh) -> tuple[Tensor, ...]:
        heads, key_heads, ranks = q.shape[1], k.shape[1], mesh.size()
        ctx.mesh, ctx.copies = mesh, heads // key_heads if key_heads % ranks else 1
        own = key_heads * ctx.copies // ranks
        start = own * mesh.get_local_rank()
        parts = (_part(q, 1, mesh), *(_repeated(whole, start, own, ctx.copies) for whole in (k, v)))
        return tuple(part.contiguous() for part in parts)  # a view would keep all heads in memory

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        heads = [grad.shape[1] for grad in grads]
        parts = collectives.all_gather_single(torch.cat(grads, dim=1), 0, ctx.mesh).chunk(ctx.mesh.size())
        of_ranks = zip(*(part.split(heads, dim=1) for part in parts), strict=True)
        q, k, v = (torch.cat(of_all, dim=1) for of_all in of_ranks)
        if ctx.copies > 1:
            k, v = (copies.unflatten(1, (-1, ctx.copies)).sum(dim=2) for copies in (k, v))
        return q, k, v, None


def _repeated(heads: Tensor, start: int, count: int, copies: int) -> Tensor:
    """`count` heads from `start` on, where every head of [B, heads, T, d] stands `copies` times."""
    first, last = start // copies, (start + count - 1) // copies
    some = heads[:, first : last + 1].repeat_interleave(copies, dim=1)
    return some.narrow(1, start - first * copies, count)
