"""Ctrl-C during training: end the step, save, stop.

Notable: an exception in the middle of a step would leave a checkpoint whose place in the data is one
batch ahead of the model, and a resumed run would differ from an unbroken one. So the first Ctrl-C is
kept until the step's end; the second one stops at once. Where no step is under way because the loader
waits for data, that place is exact, and the first one stops at once.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_log = logging.getLogger("lightning.pytorch")


class FinishStep(Callback):
    """Turns the first SIGINT during a training step into a KeyboardInterrupt at its end.

    Only for a run of one process: the ranks of a distributed run could stop at different steps, so
    there Lightning's own handling stays.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._asked = False
        self._previous: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over SIGINT."""
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._trainer, self._asked = trainer, False
            self._previous = signal.signal(signal.SIGINT, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if that was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand SIGINT back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hand SIGINT back."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked or self._trainer is None or not self._trainer.training:
            raise KeyboardInterrupt
        if getattr(self._trainer.train_dataloader, "waiting", False):
            raise KeyboardInterrupt
        self._asked = True
        _log.info("stopping at the end of this step; Ctrl-C again stops at once")

    def _restore(self) -> None:
        if self._trainer is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._trainer = None
