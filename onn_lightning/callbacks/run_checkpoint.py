"""`RunCheckpoint`: the checkpoints of a run - when one is written, which stay, and where `last.ckpt` leads.

Notable:
- A save writes its file, or its folder of shards, once; `last.ckpt` is a link to it (`checkpoint.pointer`),
  moved when it is complete and before older ones go (`checkpoint.retention`).
- Between steps it is written in the background from a copy of the state, shards by every rank; a second save
  waits for the first. The end of training, an exception and Ctrl-C wait for what is under way, and are
  written at once.
- A write that fails is told by all ranks at the next save or at the end, in one and the same error.
- Of the state of a resumed run and of its folder the folder is believed: what is gone is forgotten, what a
  killed process had no time to note or to remove is taken over. Other names are never touched.
- Lightning's rhythms are used; what it does with `save_top_k`, `save_last` and its files is not.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import proxy

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.prepared.durable import PARTIAL_SUFFIX
from onn_lightning.callbacks.durable_io import saves_of, saves_shards, wait_for_writes
from onn_lightning.checkpoint import folders
from onn_lightning.checkpoint.complete import CHECKPOINTS, is_complete, step_in_name
from onn_lightning.checkpoint.pointer import LAST, point_to
from onn_lightning.checkpoint.retention import Retention, Saved
from onn_lightning.distributed.failures import raise_on_all_ranks

_log = logging.getLogger("lightning.pytorch")
_OURS = re.compile(r"(epoch=\d+-)?step=\d+\.ckpt")  # with the epoch: those of earlier versions
_LEFT = re.compile(rf"\.({_OURS.pattern}){re.escape(PARTIAL_SUFFIX)}")  # by a process that was killed


class RunCheckpoint(ModelCheckpoint):
    """Saves a run at a rhythm, at its end and when it is interrupted, and removes what need not be kept.

    Args:
        dirpath: folder of the checkpoints; None: where Lightning puts them, `checkpoints/` in the run folder.
        every_n_train_steps: optimizer steps between two; None: by the clock.
        every_minutes: minutes between two, where `every_n_train_steps` is None.
        keep_last: so many of the newest stay.
        keep_best: so many of the best by `monitor` stay, which is looked at, and saved, after a validation.
        monitor: name of a logged figure, as `val/<source>/bits_per_byte`.
        mode: "min": lower is better; "max": higher is.
        keep_every_hours: one for every so many hours of training stays for good; None: none.
        in_background: write while training goes on, from a copy of the state in CPU memory; False: training
            waits for the file.
        save_on_exception: also save when training is interrupted or fails.
    Raises:
        ValueError: if a number is out of range, or `keep_best` is without a `monitor`.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_train_steps: int | None = None,
        every_minutes: float = 5.0,
        keep_last: int = 1,
        keep_best: int = 0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_every_hours: float | None = None,
        in_background: bool = True,
        save_on_exception: bool = True,
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps is {every_n_train_steps}, it must be at least 1, or None")
        if every_minutes < 0:
            raise ValueError(f"every_minutes is {every_minutes}, it must be at least 0")
        if (keep_best > 0) != (monitor is not None):
            raise ValueError(
                f"keep_best is {keep_best} and monitor {monitor!r}: the best need the name of a figure, and "
                "that is of use for nothing else; give both or none"
            )
        self.retention = Retention(keep_last, keep_best, mode, keep_every_hours)
        self.in_background = in_background
        self.figure = monitor  # not Lightning's `monitor`, which puts off saves until it is known
        rhythm = (
            {"train_time_interval": timedelta(minutes=every_minutes)}
            if every_n_train_steps is None
            else {"every_n_train_steps": every_n_train_steps}
        )
        super().__init__(dirpath, "{step}", save_top_k=0, save_on_exception=save_on_exception, **rhythm)
        self._saved: list[Saved] = []  # kept in rank 0, whose state is written; oldest first
        self._seconds_before = 0.0
        self._started: float | None = None

    @property
    def state_key(self) -> str:
        """The same whatever the rhythm: a resumed run may change it."""
        return type(self).__qualname__

    # ---- when ----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder.

        Raises:
            MisconfigurationException: if it is an address.
        """
        super().setup(trainer, pl_module, stage)
        if "://" in str(self.dirpath):
            raise MisconfigurationException(
                f"{self.dirpath}: RunCheckpoint keeps folders, not addresses: mount it, or name "
                "lightning.pytorch.callbacks.ModelCheckpoint under trainer.callbacks"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over what an earlier start of this run left."""
        super().on_train_start(trainer, pl_module)
        self._started = time.monotonic()
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve()
        if resumed is None or resumed.parent != self._folder.resolve():
            self._saved = []  # another run's
            return
        self._last_global_step_saved = trainer.global_step
        if trainer.is_global_zero:
            self._take_over()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save these weights if they are among the best.

        Raises:
            MisconfigurationException: if no such figure was logged.
        """
        already = self._last_global_step_saved
        self._last_global_step_saved = -1
        skipped = self._should_skip_saving_checkpoint(trainer)
        self._last_global_step_saved = already
        if self.figure is None or skipped:
            return
        found = trainer.callback_metrics.get(self.figure)
        if found is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise MisconfigurationException(
                f"RunCheckpoint: no figure '{self.figure}' was logged; {known} were"
            )
        score = float(found)
        if already == trainer.global_step:
            *older, newest = self._saved or [Saved("", -1)]
            if newest.step == already:
                self._saved = [*older, Saved(newest.name, newest.step, newest.seconds, score)]
        elif trainer.strategy.broadcast(self.retention.is_among_best(score, self._saved)):
            self._save(trainer, self.in_background, score)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what no checkpoint holds yet, and wait for what is under way.

        Raises:
            OSError: if a write failed.
        """
        if not self._should_skip_saving_checkpoint(trainer):
            self._save(trainer, in_background=False)
        self._raise_failure(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait for what is under way; save if this step is not saved yet."""
        try:
            wait_for_writes(trainer)
        except Exception as error:  # a rank that died ends the writing of the others with torch's own errors
            _log.warning("%s", error)
            # a failed write of shards all ranks know; of rank 0's file the others do not
            is_known = trainer.world_size == 1 or saves_shards(trainer.strategy)
            if isinstance(error, OSError) and is_known:
                self._last_global_step_saved = -1
        if self._should_save_on_exception(trainer):
            self._save(trainer, in_background=False)
            _log.info("stopped by %s, saved as %s", type(exception).__name__, self.last_model_path)

    # ---- Lightning's rhythms end here ----------------------------------------------------------------

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self._save(trainer, self.in_background)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        pass  # the pointer is moved with each save

    # ---- how -----------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None  # since `setup`
        return Path(self.dirpath)

    def _save(self, trainer: Trainer, in_background: bool, score: float | None = None) -> None:
        self._raise_failure(trainer)
        step = trainer.global_step
        new = Saved(f"step={step}.ckpt", step, self._seconds(), score)
        saved = [*(one for one in self._saved if one.name != new.name), new]
        going = self.retention.removable(saved)
        self._saved = [one for one in saved if one not in going]  # is in the file: noted before
        path = self._folder / new.name
        self.last_model_path = str(self._folder / LAST)
        best = self.retention.best(self._saved)
        self.best_model_path = str(self._folder / best[0].name if best else path)
        settle = partial(self._settle, path, going)
        if (saves := saves_of(trainer.strategy)) is not None:
            with saves.next_save(in_background, settle if trainer.is_global_zero else None):
                trainer.save_checkpoint(path, weights_only=False)
            if not in_background:
                self._raise_failure(trainer)
        else:
            trainer.save_checkpoint(path, weights_only=False)
            if trainer.is_global_zero:
                settle()
        self._last_global_step_saved = step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _settle(self, newest: Path, going: Sequence[Saved]) -> None:
        """What follows once a checkpoint is complete; rank 0, in the thread that wrote it."""
        point_to(newest)
        for one in going:
            try:
                folders.remove(self._folder / one.name)
            except OSError as error:
                _log.warning("%s stays, it cannot be removed: %s", self._folder / one.name, error)

    def _raise_failure(self, trainer: Trainer) -> None:
        """All ranks raise what the last write failed with."""
        failure: Exception | None = None
        try:
            wait_for_writes(trainer)
        except Exception as error:
            failure = error
        try:
            raise_on_all_ranks(failure)
        except Exception:
            self._last_global_step_saved = -1
            raise

    # ---- what there is -------------------------------------------------------------------------------

    def _take_over(self) -> None:
        known = {one.name: one for one in self._saved}
        found = []
        for path in self._folder.iterdir():
            if _LEFT.fullmatch(path.name):
                folders.remove(path)
            elif _OURS.fullmatch(path.name) and not path.is_symlink() and is_complete(path):
                one = known.get(path.name, Saved(path.name, step_in_name(path.name)))
                found.append((path.stat().st_mtime_ns, one.step, one.name, one))
        self._saved = [one for *_, one in sorted(found)]

    def _seconds(self) -> float:
        """Of training so far, over all starts."""
        here = 0.0 if self._started is None else time.monotonic() - self._started
        return self._seconds_before + here

    def state_dict(self) -> dict[str, Any]:
        """The checkpoints that stay, this one among them, and the time of training."""
        return {"saved": [asdict(one) for one in self._saved], "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._saved = [Saved(**one) for one in state_dict["saved"]]
        self._seconds_before = state_dict["seconds"]


def lead_to(trainer: Trainer, checkpoint: Path) -> None:
    """Let `last.ckpt` lead to a checkpoint that another callback wrote, in runs that have such a link.

    Args:
        trainer: of the run.
        checkpoint: complete, in the folder of the others; nothing else is being written.
    """
    if any(isinstance(callback, RunCheckpoint) for callback in trainer.checkpoint_callbacks):
        point_to(checkpoint)


def folder_of(trainer: Trainer) -> Path:
    """The folder of a run's checkpoints, or where it would be.

    Args:
        trainer: of the run.
    """
    found = (c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint))
    return Path(next((path for path in found if path), Path(trainer.default_root_dir, CHECKPOINTS)))


def save_no_more(trainer: Trainer) -> None:
    """Have nothing saved as an exception ends the training: its state is not one to go on from.

    Args:
        trainer: of the run.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.save_on_exception = False
