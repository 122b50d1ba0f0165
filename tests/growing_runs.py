"""Small training runs that grow: for tests of growth and of the emergency brake, also in other processes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from toy import ByteText

from datamodules import OmniDataModule, Source
from onn_lightning import OmniModule
from onn_lightning.callbacks import PIMonitor
from onn_lightning.document import Document
from onn_lightning.nn import TrunkConfig
from onn_lightning.regulation.plateau import Plateau

TRUNK = TrunkConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32)


class Sentences(Source):
    """Sixteen short sentences."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Document:
        return [("text", f"sentence {index} of {index * index}.")]

    def describe(self, index: int) -> str:
        return f"sentence {index}"

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter(range(16) if modality == "text" else ())


def at_once(steps: int = 3) -> Plateau:
    """A rule that takes every `steps` steps for a plateau."""
    return Plateau(patience=steps - 1, min_improvement=1.0, min_activation=0.0, cooldown=0)


def data(**settings: Any) -> OmniDataModule:
    """Rows of sentences."""
    given = {"row_length": 24, "rows_per_batch": 2, "batches_per_epoch": 4} | settings
    return OmniDataModule([ByteText()], {"s": Sentences()}, validation={"s": Sentences()}, **given)


class Witness(Callback):
    """Keeps the features of every batch, and the width of the network that read it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.widths: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, OmniModule)
        self.batches.append(batch.modalities["text"].features.flatten().tolist())
        self.widths.append(pl_module.trunk.config.feed_forward_sizes[0])

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "widths": self.widths}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self.widths = state_dict["batches"], state_dict["widths"]


def fit(
    folder: Path,
    trunk: TrunkConfig | None,
    checkpoint: Path | None,
    callbacks: Sequence[Callback] = (),
    max_steps: int = 8,
    **settings: Any,
) -> Trainer:
    """Build everything from the beginning and train."""
    torch.manual_seed(0)
    module = OmniModule(trunk or TRUNK, [ByteText()], warmup_steps=2)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            PIMonitor(),
            *callbacks,
            Witness(),
            ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=1, save_top_k=0),
        ],
        **{"limit_val_batches": 0, "logger": CSVLogger(folder, name="csv")} | settings,
    )
    trainer.fit(module, data(), ckpt_path=checkpoint)
    return trainer


def module_of(trainer: Trainer) -> OmniModule:
    """What was trained."""
    module = trainer.lightning_module
    assert isinstance(module, OmniModule)
    return module


def logged(folder: Path, figure: str) -> dict[int, float]:
    """A figure by step, out of the logs of all starts; each step must have been logged once."""
    found: dict[int, float] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get(figure):
                    assert int(row["step"]) not in found, (path, row["step"])
                    found[int(row["step"])] = float(row[figure])
    return found
