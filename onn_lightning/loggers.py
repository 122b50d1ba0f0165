"""Loggers that a run survives: their folder may vanish, fill up or become read-only while it trains.

Notable:
- Whatever the file system answers, training goes on: the first failure is told in one warning that names what
  is lost, and every later logging tries again. A folder that is gone is made anew.
- Lightning's CSV logger keeps its rows until they are written; so does this one while it cannot write, the
  newest `KEPT_ROWS` of them. What was written before stays whole: a half-written row is cut off again, and a
  file that gets further columns is replaced in one piece.
- TensorBoard's writer dies with its first failure, and silently begins a file without a head where its own
  was deleted: a new writer with a file of its own takes its place. What was to be written meanwhile is lost.
- Only what fails in mid-run is forgiven: a run whose logs cannot even be begun does not start.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

KEPT_ROWS = 10_000
_NOT_KEPT = "figures are let go until it can be"


class _Told:
    """Says once that logs cannot be written, and once that they can be again.

    Args:
        what: the logs, for the messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._failing = False

    def attempt(self, write: Callable[[], object], lost: str) -> bool:
        """Write, and say so if it is impossible.

        Args:
            write: may raise an OSError, or a ValueError caused by one.
            lost: what is lost then.
        Returns:
            Whether it was written.
        """
        try:
            write()
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            if not self._failing:
                rank_zero_warn(f"{self._what} cannot be written ({cause}): {lost}. Training goes on")
            self._failing = True
            return False
        if self._failing:
            rank_zero_info(f"{self._what} can be written again")
        self._failing = False
        return True

    def gone(self, lost: str) -> None:
        """Say that what was written is not there any more."""
        rank_zero_warn(f"{self._what} is gone: {lost}. It is made anew, and training goes on")


# ---- CSV -------------------------------------------------------------------------------------------


class _LastingRows(ExperimentWriter):
    """Writes rows so that those on disk stay whole."""

    def save(self) -> None:
        """Write what has come since the last time.

        Raises:
            OSError: if that is impossible; the rows are kept for the next time.
        """
        path = Path(self.metrics_file_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self.metrics:
            return
        del self.metrics[:-KEPT_ROWS]
        columns = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if path.is_file() and columns != self.metrics_keys:
            self._rewrite_with_new_header(columns)
        self.metrics_keys = columns
        size = path.stat().st_size if path.is_file() else 0
        try:
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, columns)
                if not size:
                    writer.writeheader()
                writer.writerows(self.metrics)
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise
        self.metrics = []

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        beside = path.with_suffix(".new")
        with path.open(newline="") as old, beside.open("w", newline="") as new:
            writer = csv.DictWriter(new, fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(old))
        beside.replace(path)


class LastingCSVLogger(CSVLogger):
    """Lightning's CSVLogger, whose `metrics.csv` may come to harm in mid-run; the same arguments."""

    _told: _Told | None = None
    _written = False

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the rows."""
        if self._experiment is None:
            rows = self._experiment = _LastingRows(log_dir=self.log_dir)
            self._told = _Told(rows.metrics_file_path)
            return rows
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Write the rows; keep them where that is impossible."""
        rows = self.experiment
        assert self._told is not None
        if self._written and not Path(rows.metrics_file_path).exists():
            self._told.gone("the rows that it held are lost")
            self._written = False
        if self._told.attempt(rows.save, f"rows are kept in memory, the newest {KEPT_ROWS:,} of them"):
            self._written = not rows.metrics and bool(rows.metrics_keys)


# ---- TensorBoard -----------------------------------------------------------------------------------


class LastingTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, whose events file may come to harm in mid-run; the same arguments."""

    _told: _Told | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures; let them go where that is impossible."""
        if self._told is None:
            self._told = _Told(f"TensorBoard's events file in {self.log_dir}")
            self.experiment  # noqa: B018  it is begun here: what fails now is no harm in mid-run
        elif self._experiment is not None and not _events_file(self._experiment).exists():
            self._told.gone("the figures that it held are lost")
            self._drop_writer()
        write = functools.partial(super().log_metrics, metrics, step)
        if not self._told.attempt(write, _NOT_KEPT):
            self._drop_writer()

    @rank_zero_only
    def save(self) -> None:
        """Flush what was written."""
        if self._told is None:
            super().save()
        elif self._experiment is not None and not self._told.attempt(super().save, _NOT_KEPT):
            self._drop_writer()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush and close."""
        if self._told is None:
            super().finalize(status)
        else:
            self._told.attempt(functools.partial(super().finalize, status), "the last figures are lost")

    def _drop_writer(self) -> None:
        """The next figures make a new one."""
        if self._experiment is not None:
            with suppress(OSError):
                self._experiment.close()
        self._experiment = None


def _events_file(writer: Any) -> Path:
    """The file that a SummaryWriter appends to; nothing but its name is kept open."""
    return Path(writer.file_writer.event_writer._file_name)
