"""Data parallel training with two real processes: averaged gradients, surprise of each rank's own tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from plain_reference import relative_error, two_pass_gradients
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel
from trunk_case import CONFIGS, W_GATE, make_case

PROCESSES = 2


def one_step(rank: int, folder: str) -> None:
    """Train one step on row `rank` of the common case; leave gradients and surprise in a file."""
    dist.init_process_group("gloo")
    case, row = make_case(CONFIGS["normalised"]), slice(rank, rank + 1)
    parallel = DistributedDataParallel(case.trunk)
    output = parallel(case.x[row], case.positions[row], case.document_ids[row])
    (case.loss(output.hidden, row) + W_GATE * output.auxiliary.gate_handle).backward()
    gradients = {name: parameter.grad for name, parameter in case.trunk.named_parameters()}
    torch.save((gradients, output.auxiliary.surprise.grad), Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_average_their_two_pass_gradients(tmp_path: Path) -> None:
    run_ranks(one_step, str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    case = make_case(CONFIGS["normalised"])
    references = [
        two_pass_gradients(
            case.trunk, lambda seen, rank=rank: case.plain_loss(seen, slice(rank, rank + 1)), W_GATE
        )
        for rank in range(PROCESSES)
    ]
    for rank, (gradients, surprise) in enumerate(results):
        for name, gradient in gradients.items():
            mean = sum(reference.gradients[name] for reference in references) / PROCESSES
            assert relative_error(gradient, mean) < 1e-10, name
        # DDP hands each rank's loss to its own backward unscaled: S is that of the rank's tokens alone
        assert relative_error(surprise, torch.cat(references[rank].surprises)) < 1e-11
