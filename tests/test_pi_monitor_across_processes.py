"""The PI monitor under real data parallel training: two processes, one set of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from monitored import PARTS, WHOLE, assert_same_figures, make_module, tensors, watch
from ranks import run_ranks

from onn_lightning import OmniModule
from onn_lightning.callbacks import PIMonitor

PROCESSES, STEPS = 2, 2


def descending(groups: Any) -> torch.optim.Optimizer:
    """Plain descent: unlike AdamW's, its steps differ by no more than the gradients do."""
    return torch.optim.SGD(groups, lr=1.0)


# the gate loss and the KL's prior are not linear in the batch: cut in parts, their gradients are others
MAIN_LOSS_ALONE = {"optimizer": descending, "w_gate": 0.0, "w_kl": 0.0}


class Leave(Callback):
    """Leaves the figures of every step, and at the end the monitor's state, in a file of this rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[dict[str, torch.Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        assert isinstance(pl_module, OmniModule)
        if pl_module.vitals is not None and pl_module.vitals.step > len(self.steps):
            self.steps.append(tensors(pl_module.vitals))
            self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (monitor,) = (c for c in trainer.callbacks if isinstance(c, PIMonitor))  # type: ignore[attr-defined]
        left = {"steps": self.steps, "logged": self.logged, "state": monitor.state_dict()}
        torch.save(left, self.folder / f"{trainer.global_rank}.pt")


def watch_part(rank: int, folder: Path) -> None:
    """Train in one of the processes."""
    watch(
        PARTS * STEPS,
        folder,
        make_module(**MAIN_LOSS_ALONE),
        callbacks=[Leave(folder)],
        devices=PROCESSES,
        strategy="ddp",
        accumulate_grad_batches=len(PARTS) // PROCESSES,
    )


@pytest.mark.slow
def test_two_processes_see_the_figures_of_one_with_the_whole_batch_and_the_same_bits(tmp_path: Path) -> None:
    """Two micro-batches on each of two ranks, for two steps; the second one after the weights have moved."""
    run_ranks(watch_part, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    alone, monitor = watch([WHOLE] * STEPS, tmp_path, make_module(**MAIN_LOSS_ALONE))
    assert len(ranks[0]["steps"]) == len(alone.vitals) == STEPS
    for step, expected in enumerate(alone.vitals):
        mine, other = (rank["steps"][step] for rank in ranks)
        for name in mine:
            assert torch.equal(mine[name], other[name]), f"{name} differs between the ranks"
        got = type(expected)(step=step + 1, modalities=expected.modalities, **mine)
        assert_same_figures(got, expected, 5e-5)
    assert ranks[0]["logged"] == ranks[1]["logged"]
    for name, value in monitor.state_dict().items():
        mine, other = (torch.as_tensor(rank["state"][name]) for rank in ranks)
        assert torch.equal(mine, other), name
        if name.startswith("seen"):
            assert torch.equal(mine, value)
