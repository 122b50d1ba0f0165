"""Curves of a run, from the CSV logs of all its starts.

Notable:
- A resumed run adds a start (`csv/version_<n>`). Where starts overlap the later one holds: what an earlier
  one logged beyond the later one's first step belongs to training that was thrown away.
- A start without any `train/` figure (validating, testing) is no part of the curves: its steps mean nothing.
- `CurveReader` reads on from where it stopped, so that a look at a long run costs what is new in it; and its
  memory is bounded: a full series merges neighbours into their mean and takes twice as many points together.
- Lines are parsed a block at a time by Arrow; only a block with words among its numbers line by line.
- Lightning rewrites the file in place where a new figure appears: while it is shorter than what was read
  already, what was read already stands.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
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
        self._columns = next(csv.reader([header.decode(errors="replace").strip()]), [])
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
        for key, curve in self._parsed(complete):
            self._series.setdefault(key, _Series()).extend(curve)
            self.first_step = min(self.first_step, float(curve.steps.min()))
            self.is_training |= key.startswith("train/")

    def _parsed(self, lines: bytes) -> Iterator[tuple[str, Curve]]:
        """(key, points) of every figure that complete lines hold at least one number of."""
        try:
            columns = _numbers_by_column(lines, self._columns)
        except pa.ArrowInvalid:
            columns = _numbers_line_by_line(lines, self._columns)
        steps = columns.pop("step", None)
        for key, values in columns.items():
            if steps is None or "/" not in key:
                continue
            given = ~(steps.mask | values.mask)
            if given.any():
                yield key, Curve(steps.data[given], values.data[given])

    def curves(self) -> Iterator[tuple[str, Curve]]:
        """(key, curve) of every figure."""
        return ((key, series.curve()) for key, series in self._series.items())


Column = np.ma.MaskedArray
"""[lines] of numbers; masked where a line has none."""


def _numbers_by_column(lines: bytes, names: list[str]) -> dict[str, Column]:
    """Parse lines of nothing but numbers; lines of another length are left out.

    Raises:
        ArrowInvalid: where there is something else.
    """
    if not lines.strip():
        return {}
    table = pyarrow.csv.read_csv(
        io.BytesIO(lines),
        pyarrow.csv.ReadOptions(use_threads=False, column_names=names),
        pyarrow.csv.ParseOptions(invalid_row_handler=lambda row: "skip"),  # the middle of a rewriting
        pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64()), null_values=[""]),
    )
    return {
        name: Column(column.fill_null(0.0).to_numpy(), column.is_null().to_numpy())
        for name, column in zip(names, table.columns, strict=True)
    }


def _numbers_line_by_line(lines: bytes, names: list[str]) -> dict[str, Column]:
    """The same of any lines; what is no number is none."""
    rows = [
        [_number(text) for text in row]
        for row in csv.reader(lines.decode(errors="replace").splitlines())
        if len(row) == len(names)
    ]
    return {
        name: Column(
            [0.0 if row[place] is None else row[place] for row in rows], [row[place] is None for row in rows]
        )
        for place, name in enumerate(names)
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class _Series:
    """Points that were added in their order, at most `2 * POINTS` of them in memory."""

    def __init__(self) -> None:
        self._steps, self._values = np.empty(0), np.empty(0)
        self._group = np.empty((2, 0))  # steps and values of the last points, fewer than the stride
        self._stride = 1

    def extend(self, points: Curve) -> None:
        """Add points that follow those there are."""
        rest = np.stack([points.steps, points.values])
        while rest.shape[1]:
            room = (2 * POINTS - len(self._steps)) * self._stride - self._group.shape[1]
            self._take(rest[:, :room])
            rest = rest[:, room:]
            if len(self._steps) == 2 * POINTS:
                pairs = (part.reshape(-1, 2) for part in (self._steps, self._values))
                self._steps, self._values = (_mean_of_finite(pair) for pair in pairs)
                self._stride *= 2

    def _take(self, points: NDArray[np.float64]) -> None:
        """[2, P] into groups of the stride, each of which becomes a point."""
        points = np.concatenate([self._group, points], axis=1)
        whole = points.shape[1] // self._stride * self._stride
        self._group = points[:, whole:]
        groups = points[:, :whole].reshape(2, -1, self._stride)
        self._steps = np.append(self._steps, _mean_of_finite(groups[0]))
        self._values = np.append(self._values, _mean_of_finite(groups[1]))

    def curve(self) -> Curve:
        """All points; of a group that is not complete, its mean so far."""
        if not self._group.shape[1]:
            return Curve(self._steps, self._values)
        step, value = _mean_of_finite(self._group)
        return Curve(np.append(self._steps, step), np.append(self._values, value))


def _mean_of_finite(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R, G] -> [R] mean of each row's finite numbers; where a row has none, its first one."""
    finite = np.isfinite(rows)
    count = finite.sum(axis=1)
    total = np.where(finite, rows, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), rows[:, 0])
