"""Training with tensor parallelism, through the trainer, against training alone, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from growing_runs import Witness as BatchWitness
from growing_runs import fit
from lightning.pytorch import Callback, LightningModule, Trainer
from monitored import make_module, watch
from ranks import run_ranks
from test_global_batch import PARTS, W_GATE, WHOLE, Witness
from torch import Tensor

from datamodules.loader import TrainLoader
from onn_lightning import Batch
from onn_lightning.callbacks import NeuronProtection, PIMonitor, RunRecord, SkipBrokenSteps
from onn_lightning.callbacks.durable_io import DurableCheckpointIO
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.optim import NeuronAdamW

RANKS = 4


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


def train_on_ranks(rank: int, folder: str) -> None:
    """Train on 2 x 2 ranks, of which neighbours share neurons and read the same part of every batch."""
    parts = [part for part in PARTS for _ in range(2)]
    torch.save(
        train(Path(folder), parts, strategy=FSDP2Strategy(2, 2), devices=RANKS), Path(folder, f"{rank}.pt")
    )


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        relative = 1e-9 if value.dtype == torch.float64 else 1e-6  # what is logged
        assert torch.allclose(got[key], value, rtol=relative, atol=1e-2 * relative), key


@pytest.mark.slow
def test_ranks_that_share_neurons_train_as_one_and_one_goes_on_alone(tmp_path: Path) -> None:
    run_ranks(train_on_ranks, str(tmp_path), count=RANKS)
    alone = train(tmp_path / "alone", WHOLE)
    for rank in range(RANKS):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone)
    plugins = [DurableCheckpointIO()]
    resumed = train(tmp_path / "resumed", WHOLE, checkpoint=tmp_path / "0.ckpt", plugins=plugins)
    weights = {key: value for key, value in alone.items() if key.startswith("weights")}
    assert_same({key: resumed[key] for key in weights}, weights)


def read_data(rank: int, folder: str) -> None:
    """Four steps on 2 x 2 ranks, of which neighbours share neurons; leave what was read and up to where."""
    record = RunRecord()
    trainer = fit(Path(folder), None, None, [record], 4, strategy=FSDP2Strategy(2, 2), devices=RANKS)
    (witness,) = (callback for callback in trainer.callbacks if isinstance(callback, BatchWitness))
    assert isinstance(trainer.train_dataloader, TrainLoader)
    left = (witness.batches, trainer.train_dataloader.state_dict(), record.state_dict()["tokens"]["text"])
    torch.save(left, Path(folder, f"{rank}.pt"))


@pytest.mark.slow
def test_ranks_that_share_neurons_read_the_same_data_and_others_other_data(tmp_path: Path) -> None:
    run_ranks(read_data, str(tmp_path), count=RANKS)
    batches, places, tokens = zip(
        *(torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)), strict=True
    )
    assert batches[0] == batches[1] != batches[2] == batches[3]
    assert all(place == places[0] for place in places)
    assert places[0]["replicas"] == len(places[0]["places"]) == 2
    assert tokens[0] == 2 * sum(map(len, batches[0]))  # counted by rank 0 for all that read other data
