"""For tests of the command line: a model, data and a modality of a few numbers, chosen by class path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onn_lightning.batch import Segment
from onn_lightning.modality import BadSampleError, Modality


@dataclass(frozen=True)
class Rotary:
    factor: float = 1.0


@dataclass(frozen=True)
class Trunk:
    hidden_size: int = 8
    num_layers: int = 1
    rotary: Rotary | None = None


class Sensor(Modality):
    name = "sensor"

    def __init__(self, width: int = 3) -> None:
        if width < 1:
            raise ValueError(f"Sensor: width is {width}, it must be at least 1")
        self.width = width

    def encode(self, raw: Any) -> Segment:
        return Segment(self.name, torch.tensor(raw))

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return nn.Linear(self.width, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module | None:
        return None


class Data(LightningDataModule):
    def __init__(self, modalities: list[Modality], num_rows: int = 8, damaged: str = "") -> None:
        super().__init__()
        self.modalities = modalities
        self.num_rows = num_rows
        self.damaged = damaged

    def _loader(self) -> DataLoader[Tensor]:
        if self.damaged:
            raise BadSampleError(f"{self.damaged}: truncated;\nfetch it again")
        rows = torch.randn(self.num_rows, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(rows, batch_size=2)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class Model(LightningModule):
    def __init__(
        self,
        trunk: Trunk,
        modalities: list[Modality],
        optimizer: OptimizerCallable = torch.optim.AdamW,
        warmup_steps: int = 100,
        interrupt_at_step: int | None = None,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}: give 0 or more")
        self.trunk = trunk
        self.modalities = modalities
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.interrupt_at_step = interrupt_at_step
        self.embedder = modalities[0].build_embedder(trunk.hidden_size)

    def training_step(self, batch: Tensor) -> Tensor:
        if self.global_step == self.interrupt_at_step:
            raise KeyboardInterrupt
        loss = self.embedder(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/loss", self.embedder(batch).square().mean())

    def test_step(self, batch: Tensor) -> None:
        self.log("test/loss", self.embedder(batch).square().mean())

    def predict_step(self, batch: Tensor) -> Tensor:
        return self.embedder(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line left behind."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The message, which must be one line."""
        lines = [line for line in self.err.splitlines() if line.startswith("onn: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("onn: ").removeprefix("error: ")
