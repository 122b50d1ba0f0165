"""Small runs whose data holds a poisoned stretch, for tests of loss spikes, also in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import Strategy
from monitored import PARTS, make_module

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import LossSpikes, PIMonitor
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import NeuronAdamW
from onn_lightning.regulation.loss_spikes import SpikeRule
from onn_lightning.reshaping.rebuild import fit_growing

RULE = {"z": 6.0, "ratio": 1.5, "half_life": 5.0, "deviation_half_life": 10.0, "warmup_steps": 6}


def poisoned(batch: Batch) -> Batch:
    """The batch with absurd targets of its patches."""
    patches = batch.modalities["patch"]
    assert patches.targets is not None
    broken = replace(patches, targets=torch.full_like(patches.targets, 9.0))
    return replace(batch, modalities={**batch.modalities, "patch": broken})


class Numbered:
    """Batches by number, every rank its own, with a place that goes into the checkpoint.

    Args:
        numbers: of the batches, in order.
        bad: numbers of poisoned ones.
    """

    def __init__(self, numbers: Sequence[int], bad: Sequence[int]) -> None:
        self.numbers, self.bad = list(numbers), set(bad)
        self.given = 0
        self.read: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        rank = dist.get_rank() if dist.is_initialized() else 0
        while self.given < len(self.numbers):
            number = self.numbers[self.given]
            self.given += 1
            self.read.append(number)
            batch = PARTS[(number + rank) % len(PARTS)]
            yield poisoned(batch) if number in self.bad else batch

    def __len__(self) -> int:
        """Known, so that Lightning fetches no batch ahead, and the place is exact."""
        return len(self.numbers)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def spikes(**settings: Any) -> LossSpikes:
    """A callback for which two steps in a row are a lasting spike."""
    return LossSpikes(SpikeRule(**RULE), **{"sustained_steps": 2, "roll_back": True} | settings)


def train(
    folder: Path,
    numbers: Sequence[int],
    bad: Sequence[int] = (),
    max_steps: int = 20,
    every_n_train_steps: int = 5,
    callbacks: Sequence[Callback] = (),
    make_strategy: Callable[[], Strategy] | None = None,
    **settings: Any,
) -> tuple[OmniModule, list[list[int]], LossSpikes]:
    """Train as often as it takes; the module, what each start has read, and the last start's callback."""
    read: list[list[int]] = []
    trainers: list[Trainer] = []
    options = {"log_every_n_steps": 1, "logger": CSVLogger(folder, name="csv")}
    spiking = {name: settings.pop(name) for name in ("roll_back", "max_rollbacks") if name in settings}

    def fit(trunk: TrunkConfig | None, checkpoint: Path | None) -> LossSpikes:
        module = make_module(optimizer=lambda groups: NeuronAdamW(groups, lr=0.01), warmup_steps=1)
        data, watched = Numbered(numbers, bad), spikes(**spiking)
        read.append(data.read)
        save = ModelCheckpoint(
            folder / "checkpoints", "{step}", every_n_train_steps=every_n_train_steps, save_top_k=-1
        )
        if make_strategy is not None:  # one is good for one trainer
            settings["strategy"] = make_strategy()
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            max_steps=max_steps,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[PIMonitor(), watched, *callbacks, save],
            **options | settings,
        )
        trainers.append(trainer)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return watched

    watched = fit_growing(fit)
    module = trainers[-1].lightning_module
    assert isinstance(module, OmniModule)
    return module, read, watched
