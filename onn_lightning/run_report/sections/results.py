"""Held-out results: the newest figures of every source, and the best ones of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onn_lightning.dashboard.curves import Curves
from onn_lightning.run_report.markup import Content, Safe, clipped, element, join, paragraph, table
from onn_lightning.run_report.quantities import figure
from onn_lightning.run_report.run import Run

NAMES = {"val": "validation", "test": "test"}
FIRST = ("exact_match", "bits_per_byte", "accuracy")
HIGHER_IS_BETTER = ("exact_match", "accuracy")
MAX_SOURCES, MAX_FIGURES = 200, 12


@dataclass(frozen=True)
class _Newest:
    """The newest figures of a stage."""

    model: str
    sources: Mapping[str, Mapping[str, float]]


def results_tables(run: Run) -> Safe:
    """One table a stage."""
    stages = {stage: _Newest(found.model, found.sources) for stage, found in run.results.items()}
    logged = _logged(run.curves)
    # of a run that goes on, the logs are newer than what its last end wrote
    if logged is not None and ("val" not in stages or logged.model != stages["val"].model):
        stages["val"] = logged
    if not stages:
        return paragraph("No held-out data was measured yet.", class_="faint")
    return join(
        *(_table(stage, newest, run.curves) for stage, newest in sorted(stages.items(), reverse=True))
    )


def _table(stage: str, newest: _Newest, curves: Curves) -> Safe:
    sources = dict(list(newest.sources.items())[:MAX_SOURCES])
    known = {name for row in sources.values() for name in row}
    columns = [name for name in FIRST if name in known] + sorted(known.difference(FIRST))
    columns = columns[:MAX_FIGURES]
    rows = [
        [clipped(source, 80), *(_cell(stage, source, name, row, curves) for name in columns)]
        for source, row in sources.items()
    ]
    model = f" ({newest.model})" if newest.model else ""
    caption = f"{NAMES.get(stage, stage)}{model}"
    left_out = len(newest.sources) - len(sources)
    note = paragraph(f"{left_out:,} more sources are left out.", class_="faint") if left_out > 0 else None
    return join(
        table(caption, ["source", *(name.replace("_", " ") for name in columns)], rows, range(1, 99)), note
    )


def _cell(stage: str, source: str, name: str, row: Mapping[str, float], curves: Curves) -> Content:
    if name not in row:
        return ""
    best = _best(stage, source, name, curves)
    if best is None or figure(best[0]) == figure(row[name]):
        return figure(row[name])
    return [figure(row[name]), element("small", f"best {figure(best[0])} at {best[1]:,}")]


def _best(stage: str, source: str, name: str, curves: Curves) -> tuple[float, int] | None:
    """(value, step) of the best that a run had in training; None where it had one only."""
    curve = curves.figures.get(f"{stage}/{source}/{name}")
    if curve is None or stage != "val" or np.isfinite(curve.values).sum() < 2:
        return None
    values = -curve.values if name in HIGHER_IS_BETTER else curve.values
    place = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
    return float(curve.values[place]), int(curve.steps[place]) + 1


def _logged(curves: Curves) -> _Newest | None:
    """The newest validation of the logs."""
    sources: dict[str, dict[str, float]] = {}
    steps = []
    for key, curve in curves.figures.items():
        parts = key.split("/")
        if len(parts) < 3 or parts[0] != "val" or not len(curve.steps):
            continue
        sources.setdefault("/".join(parts[1:-1]), {})[parts[-1]] = float(curve.values[-1])
        steps.append(int(curve.steps[-1]) + 1)
    return _Newest(f"step {max(steps):,}", sources) if sources else None
