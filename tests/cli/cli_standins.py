"""For tests of the command line: a kind of data, a source of it and a model that is interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datamodules import Source
from onn_lightning import Batch, Modality, OmniModule, Segment
from onn_lightning.document import Document
from onn_lightning.modality import BadSampleError


class Regression(nn.Module):
    """Squared error of the next number."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.read = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return (self.read(hidden) - targets).square().mean(-1)


class Sensor(Modality):
    """A 1-D series of numbers, one token each."""

    name = "sensor"

    def __init__(self, scale: float = 1.0) -> None:
        if scale <= 0:
            raise ValueError(f"Sensor: scale is {scale}, it must be positive")
        self.scale = scale

    def encode(self, raw: Any) -> Segment:
        values = torch.tensor(raw)[:, None] * self.scale
        return Segment(self.name, values, targets=values)

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return nn.Linear(1, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module:
        return Regression(hidden_size)


class Waves(Source):
    """Sixteen sine waves, or none that can be read."""

    def __init__(self, damaged: str = "", weight: float = 1.0) -> None:
        super().__init__(weight)
        self.damaged = damaged

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Document:
        if self.damaged:
            raise BadSampleError(f"{self.damaged}: truncated;\nfetch it again")
        return [("sensor", torch.sin(torch.arange(12) * (index + 1) / 5).tolist())]

    def describe(self, index: int) -> str:
        return f"wave {index}"

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter(range(16) if modality == "sensor" else ())


class Interrupted(OmniModule):
    """Receives a signal in the middle of a step."""

    def __init__(self, at_step: int, number: int = signal.SIGINT.value, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at_step, self.number = at_step, number

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.global_step == self.at_step:
            signal.raise_signal(self.number)
        return super().training_step(batch, batch_idx)


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
