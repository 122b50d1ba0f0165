"""A new modality in one file: the readings of a 1-D sensor.

Everything the framework asks for is here - how a recording becomes tokens, how tokens enter the tower,
how they are predicted - and one `class_path` in `sensor.yaml` is all that names it.

Notable:
- A token is `patch_length` consecutive readings. Their order is all the geometry there is, and the
  tower's own 1-D position tells it: no `positions_2d`.
- Readings are brought to zero mean and unit variance over the recording, whatever their unit.
- Each patch is predicted from what came before it (mean squared error, as for images and sound).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from onn_lightning import Modality, Segment
from onn_lightning.modality import BadSampleError
from onn_lightning.nn import PatchRegressionHead


class SensorModality(Modality):
    """Recordings of one sensor, evenly spaced in time.

    Args:
        patch_length: readings in a token.
        max_tokens: longest recording, in tokens.
        column: column of the CSV file that holds the readings.
    """

    name = "sensor"

    def __init__(self, patch_length: int = 8, max_tokens: int = 256, column: str = "value") -> None:
        if patch_length < 1 or max_tokens < 1:
            raise ValueError(
                f"SensorModality: patch_length={patch_length}, max_tokens={max_tokens} must be positive"
            )
        self.patch_length = patch_length
        self.max_tokens = max_tokens
        self.column = column

    def encode(self, raw: str | Path | Sequence[float] | Tensor) -> Segment:
        """Turn a recording into tokens; readings that fill no patch are left off at its end.

        Args:
            raw: path of a CSV file with a header, or the readings themselves.
        Returns:
            features and targets [n, patch_length].
        Raises:
            BadSampleError: unreadable, too short or too long, not finite, or constant.
        """
        name = f"sensor recording '{raw}'" if isinstance(raw, str | Path) else "sensor recording in memory"
        try:
            values = self._read(raw) if isinstance(raw, str | Path) else raw
            readings = torch.as_tensor(values, dtype=torch.float32)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise BadSampleError(
                f"{name} has no readable column '{self.column}' of numbers ({error!r}): mend or drop it"
            ) from error
        tokens = len(readings) // self.patch_length if readings.ndim == 1 else 0
        if not 1 <= tokens <= self.max_tokens:
            raise BadSampleError(
                f"{name} has shape {tuple(readings.shape)}, expected enough readings for 1 to "
                f"{self.max_tokens} tokens of {self.patch_length}: split it, change max_tokens or drop it"
            )
        spread = float(readings.std(correction=0))
        if not math.isfinite(spread) or spread == 0:
            raise BadSampleError(f"{name} is constant or not finite (standard deviation {spread}): drop it")
        readings = (readings - readings.mean()) / spread
        patches = readings[: tokens * self.patch_length].view(tokens, self.patch_length)
        return Segment(self.name, features=patches, targets=patches)

    def build_embedder(self, hidden_size: int) -> nn.Module:
        """features [n, patch_length] -> [n, hidden_size]."""
        return nn.Linear(self.patch_length, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module:
        """(hidden [m, hidden_size], targets [m, patch_length]) -> loss [m]."""
        return PatchRegressionHead(hidden_size, self.patch_length)

    def _read(self, path: str | Path) -> list[float]:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return [float(row[self.column]) for row in csv.DictReader(file)]
