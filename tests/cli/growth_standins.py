"""For tests of runs that grow: growth that is killed at a chosen moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from onn_lightning import Modality
from onn_lightning.callbacks import GrowOnPlateau
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping import Reshaping

MOMENT = "KILL_GROWTH"
"""Environment variable: when the process kills itself."""


def die(moment: str) -> None:
    """SIGKILL, if it is the moment."""
    if os.environ.get(MOMENT) == moment:
        os.kill(os.getpid(), signal.SIGKILL)


class MortalGrowth(GrowOnPlateau):
    """Growth that may be killed."""

    def plans(
        self, checkpoint: Mapping[str, Any], trunk: TrunkConfig, modalities: list[Modality]
    ) -> Iterator[Reshaping]:
        yield from super().plans(checkpoint, trunk, modalities)
        die("reshaped")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        die("written")
