"""Broken steps under real data parallel training: one rank has the NaN, both skip."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from monitored import MODALITIES, PARTS, TRUNK, moving, watch
from ranks import run_ranks
from test_broken_steps import GATE, assert_same_bits, moved, nan_in_loss
from torch import Tensor

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import SkipBrokenSteps
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.optim.firing import local_part

PROCESSES, BROKEN_STEP = 2, 1


class LocalSnapshots(Callback):
    """This process's part of the weights and of the optimizer's state after every step."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[str, Tensor], list[dict[str, Tensor]]]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        parameters = {name: _copy(value) for name, value in pl_module.named_parameters()}
        states = trainer.optimizers[0].state.values()
        self.taken.append(
            (parameters, [{key: _copy(value) for key, value in state.items()} for state in states])
        )


def _copy(tensor: Tensor) -> Tensor:
    return local_part(tensor.detach()).clone()


class BreakGradientOfRank(Callback):
    """Puts NaN into what one rank has of a gradient, after gradients were averaged over the ranks."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == BROKEN_STEP and trainer.global_rank == self.rank:
            gradient = pl_module.get_parameter(GATE).grad
            assert gradient is not None
            local_part(gradient)[1] = math.nan


def train(rank: int, folder: str) -> None:
    """Three steps in process `rank`, the second broken on rank 1; every run leaves a file of what it saw."""
    spoilt = [*PARTS, *PARTS[:2]]
    spoilt[PROCESSES * BROKEN_STEP + 1] = nan_in_loss(spoilt[PROCESSES * BROKEN_STEP + 1])
    whole = [*PARTS, *PARTS[:2]]
    one_gradient = [BreakGradientOfRank(1)]
    _run(rank, folder, "loss", spoilt, [], DDPStrategy())
    _run(rank, folder, "gradient", whole, one_gradient, DDPStrategy())
    _run(rank, folder, "sharded", whole, one_gradient, FSDP2Strategy(PROCESSES))


def _run(
    rank: int,
    folder: str,
    name: str,
    batches: list[Batch],
    callbacks: list[Callback],
    strategy: Strategy,
) -> None:
    torch.manual_seed(0)
    module = OmniModule(TRUNK, MODALITIES, optimizer=moving, w_gate=0.1)
    snapshots, skip = LocalSnapshots(), SkipBrokenSteps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch(
            batches,
            Path(folder, name),
            module,
            callbacks=[*callbacks, skip, snapshots],
            devices=PROCESSES,
            strategy=strategy,
        )
    told = [str(warning.message) for warning in caught if "SkipBrokenSteps" in str(warning.message)]
    torch.save(
        {"steps": snapshots.taken, "skipped": skip.total, "told": told}, Path(folder, f"{name}-{rank}.pt")
    )


@pytest.mark.slow
def test_two_ranks_skip_what_is_broken_on_one_and_go_on_alike(tmp_path: Path) -> None:
    run_ranks(train, str(tmp_path))
    for name, what in (
        ("loss", "the loss of patch on rank 1"),
        ("gradient", f"the gradient of {GATE} on rank 1"),
        ("sharded", f"the gradient of {GATE} on rank 1"),
    ):
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
        for rank in ranks:
            first, second, third = rank["steps"]
            assert_same_bits(second, first)
            assert moved(second[0], third[0])
            assert all(value.isfinite().all() for value in third[0].values())
            assert rank["skipped"] == 1
        if name != "sharded":
            assert_same_bits(ranks[1]["steps"], ranks[0]["steps"])
        (told,) = ranks[0]["told"]
        assert f"step 2 is skipped, {what} is not finite" in told
        assert not ranks[1]["told"]
