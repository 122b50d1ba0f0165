"""Gradient checkpointing on two real ranks: every strategy gives the gradients that it gives without it."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from plain_reference import relative_error
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from trunk_case import CONFIGS, W_GATE, make_case

from onn_lightning.distributed.tensor_parallel import parallelize_block
from onn_lightning.nn.recompute import Checkpointing


def whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def one_step(rank: int, strategy: str, mode: Checkpointing) -> dict[str, Tensor]:
    """Gradients and surprise of one step on this rank's row."""
    case, row = make_case(CONFIGS["grouped keys"]), slice(rank, rank + 1)
    case.trunk.checkpointing = mode
    trunk: nn.Module = case.trunk
    if strategy == "ddp":
        trunk = DistributedDataParallel(trunk)
    elif strategy == "tensor parallel":
        mesh = init_device_mesh("cpu", (2,))
        for block in case.trunk.blocks:
            parallelize_block(block, mesh)
        row = slice(0, 1)  # all of its ranks read the same
    else:
        for block in case.trunk.blocks:
            fully_shard(block)
        fully_shard(trunk)
    output = trunk(case.x[row], case.positions[row], case.document_ids[row])
    (case.loss(output.hidden, row) + W_GATE * output.auxiliary.gate_handle).backward()
    found = {name: whole(parameter.grad) for name, parameter in case.trunk.named_parameters()}
    return found | {"surprise": output.auxiliary.surprise.grad}


def compare(rank: int) -> None:
    dist.init_process_group("gloo")
    for strategy in ("ddp", "fsdp2", "tensor parallel"):
        expected = one_step(rank, strategy, "none")
        for mode in ("block", "selective"):
            found = one_step(rank, strategy, mode)
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                assert relative_error(found[name], gradient) < 1e-12, (strategy, mode, name)


@pytest.mark.slow
def test_every_strategy_gives_the_same_gradients_with_checkpointing_as_without() -> None:
    run_ranks(compare)
