"""Training with tensor parallelism, through the trainer, against training alone, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from monitored import make_module, watch
from ranks import run_ranks
from test_global_batch import PARTS, W_GATE, WHOLE, Witness
from torch import Tensor

from onn_lightning import Batch
from onn_lightning.callbacks import NeuronProtection, PIMonitor, SkipBrokenSteps
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.optim import NeuronAdamW


class SaveAtEpochs(Callback):
    """Leaves a checkpoint after every epoch.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def train(folder: Path, batches: list[Batch], **settings: Any) -> dict[str, Tensor]:
    """Train a module in float64; gradients, vitals, weights, what was logged and what was counted."""
    witness, monitor = Witness(), PIMonitor()
    module = make_module(optimizer=NeuronAdamW, w_gate=W_GATE, w_kl=0.1).double()
    callbacks = [SkipBrokenSteps(), NeuronProtection(), SaveAtEpochs(folder), witness]
    options = {"callbacks": callbacks, "max_epochs": 2, "gradient_clip_val": 0.1}
    keep, _ = watch(batches, folder, module, monitor, **options | settings)
    assert monitor.seen_tokens_per_neuron is not None and monitor.fired_tokens_per_neuron is not None
    logged = {
        f"{step}: {name}": torch.tensor(value)
        for step, figures in enumerate(keep.logged)
        for name, value in figures.items()
    }
    counted = {"seen": monitor.seen_tokens_per_neuron, "fired": monitor.fired_tokens_per_neuron}
    return witness.seen | logged | counted


def train_on_ranks(rank: int, folder: str, data_ranks: int) -> None:
    """Train on data_ranks x 2 ranks, of which two neighbours read the same part of every batch."""
    parts = [part for part in (PARTS if data_ranks > 1 else WHOLE) for _ in range(2)]
    strategy = FSDP2Strategy(data_ranks, 2, save_distributed_checkpoint=False)
    seen = train(Path(folder), parts, strategy=strategy, devices=2 * data_ranks)
    torch.save(seen, Path(folder, f"{rank}.pt"))


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        relative = 1e-9 if value.dtype == torch.float64 else 1e-6  # what is logged
        assert torch.allclose(got[key], value, rtol=relative, atol=1e-2 * relative), key


@pytest.mark.slow
@pytest.mark.parametrize("data_ranks", [1, 2])
def test_ranks_that_share_neurons_train_as_one_and_one_goes_on_alone(tmp_path: Path, data_ranks: int) -> None:
    run_ranks(train_on_ranks, str(tmp_path), data_ranks, count=2 * data_ranks)
    alone = train(tmp_path / "alone", WHOLE)
    for rank in range(2 * data_ranks):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone)
    resumed = train(tmp_path / "resumed", WHOLE, checkpoint=tmp_path / "0.ckpt")
    weights = {key: value for key, value in alone.items() if key.startswith("weights")}
    assert_same({key: resumed[key] for key in weights}, weights)
