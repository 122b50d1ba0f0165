"""Curves of a run, from the CSV logs of all its starts.

Notable:
- A resumed run adds a start (`csv/version_<n>`). Where starts overlap the later one holds: what an earlier
  one logged beyond the later one's first step belongs to training that was thrown away.
- A start without any `train/` figure (validating, testing) is no part of the curves: its steps mean nothing.
- `CurveReader` reads on from where it stopped, so that a look at a long run costs what is new in it; and its
  memory is bounded: a full series merges neighbours into their mean and takes twice as many points together.
- Lightning rewrites the file in place where a new figure appears: while it is shorter than what was read
  already, what was read already stands.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LOGS = "csv"
POINTS = 4096  # of a series; far beyond the pixels of a panel


@dataclass(frozen=True)
class Curve:
    """One figure over the steps of a run.

    Args:
        steps: [P] optimizer steps, rising.
        values: [P] its values, in the unit in which it was logged; NaN and inf as they were.
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """All figures of a run, by key (`train/main_loss`, `val/zh/bits_per_byte`, ...)."""

    figures: dict[str, Curve]

    @property
    def last_step(self) -> int:
        """The newest step of any figure; 0 where there is none."""
        return int(max((curve.steps[-1] for curve in self.figures.values()), default=0))


def read_curves(run_folder: Path) -> Curves:
    """The curves of a run; empty where it has no CSV logs.

    Args:
        run_folder: folder of the run, with `csv/version_<n>/metrics.csv`.
    """
    return CurveReader(run_folder / LOGS).read()


class CurveReader:
    """Reads the curves of a run that may still be going on.

    Args:
        logs: folder with one folder a start, `<start>/metrics.csv` in each.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._starts: dict[Path, _Start] = {}

    def read(self) -> Curves:
        """The curves as they are now."""
        for path in sorted(self._logs.glob("*/metrics.csv"), key=_order):
            self._starts.setdefault(path, _Start(path)).read_on()
        figures: dict[str, list[Curve]] = {}
        end = math.inf
        for path in sorted(self._starts, key=_order, reverse=True):
            start = self._starts[path]
            if not start.is_training:
                continue
            for key, curve in start.curves():
                kept = curve.steps < end
                if kept.any():
                    figures.setdefault(key, []).append(Curve(curve.steps[kept], curve.values[kept]))
            end = min(end, start.first_step)
        return Curves({key: _joined(parts[::-1]) for key, parts in sorted(figures.items())})


def _order(path: Path) -> tuple[int, str]:
    """Starts in the order of their numbers."""
    number = re.fullmatch(r"version_(\d+)", path.parent.name)
    return int(number[1]) if number else -1, path.parent.name


def _joined(parts: list[Curve]) -> Curve:
    return Curve(
        np.concatenate([part.steps for part in parts]), np.concatenate([part.values for part in parts])
    )


class _Start:
    """The log of one start of a run, read as far as it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget(b"")

    def _forget(self, header: bytes) -> None:
        self._header, self._offset = header, len(header)
        self._columns = header.decode(errors="replace").strip().split(",")
        self._series: dict[str, _Series] = {}
        self.first_step, self.is_training = math.inf, False

    def read_on(self) -> None:
        """Read the lines that were completed since the last time."""
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._offset:
                return
            file.seek(0)
            header = file.readline()
            if not header.endswith(b"\n"):
                return
            if header != self._header:
                self._forget(header)
            file.seek(self._offset)
            written = file.read()
        complete = written[: written.rfind(b"\n") + 1]
        self._offset += len(complete)
        for row in csv.reader(complete.decode(errors="replace").splitlines()):
            if len(row) == len(self._columns):  # not so in the middle of a rewriting
                self._add(dict(zip(self._columns, row, strict=True)))

    def _add(self, row: dict[str, str]) -> None:
        step = _number(row.pop("step", ""))
        if step is None:
            return
        for key, text in row.items():
            value = _number(text)
            if value is None or "/" not in key:
                continue
            self._series.setdefault(key, _Series()).add(step, value)
            self.first_step = min(self.first_step, step)
            self.is_training |= key.startswith("train/")

    def curves(self) -> Iterator[tuple[str, Curve]]:
        """(key, curve) of every figure."""
        return ((key, series.curve()) for key, series in self._series.items())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class _Series:
    """Points that were added one by one, at most `2 * POINTS` of them in memory."""

    def __init__(self) -> None:
        self._steps, self._values = array("d"), array("d")
        self._group: list[tuple[float, float]] = []
        self._stride = 1

    def add(self, step: float, value: float) -> None:
        self._group.append((step, value))
        if len(self._group) < self._stride:
            return
        self._close_group()
        if len(self._steps) == 2 * POINTS:
            pairs = (np.asarray(part).reshape(-1, 2) for part in (self._steps, self._values))
            self._steps, self._values = (array("d", _mean_of_finite(pair)) for pair in pairs)
            self._stride *= 2

    def _close_group(self) -> None:
        if self._group:
            step, value = _mean_of_finite(np.array(self._group).T)
            self._steps.append(step)
            self._values.append(value)
            self._group = []

    def curve(self) -> Curve:
        """All points; of a group that is not complete, its mean so far."""
        steps, values = np.array(self._steps), np.array(self._values)
        if self._group:
            step, value = _mean_of_finite(np.array(self._group).T)
            steps, values = np.append(steps, step), np.append(values, value)
        return Curve(steps, values)


def _mean_of_finite(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R, G] -> [R] mean of each row's finite numbers; where a row has none, its first one."""
    finite = np.isfinite(rows)
    count = finite.sum(axis=1)
    total = np.where(finite, rows, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), rows[:, 0])
