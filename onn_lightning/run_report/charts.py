"""Which curves of a run stand in which chart.

Notable:
- The charts are those of the dashboard (`onn_lightning.dashboard.panels`), and a few that only a report has
  room for. A figure that none of them knows has a chart of its own kind below, so that nothing that was
  logged is missing.
- All charts share the steps at their ends and the marks of starts and reshapings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from onn_lightning.dashboard.curves import Curves
from onn_lightning.dashboard.panels import PANELS, Line, Panel, label
from onn_lightning.run_report.chart import Chart, Mark, Series
from onn_lightning.run_report.thinning import thin

MORE_PANELS = (
    Panel("learning rate", "by group of parameters", (Line(r"lr-(.+)", r"\1"),), log=True),
    Panel(
        "use of the machine",
        "fraction",
        (
            Line("train/mfu", "MFU: FLOPs done, of the device's peak"),
            Line("train/data_wait", "time between steps, waiting for data"),
        ),
    ),
    Panel("means over all steps between two logs", "as named", (Line(r"train/mean/(.+)", r"\1"),)),
    Panel(
        "steps that went wrong",
        "so far",
        (
            Line("train/broken_steps", "steps with figures that are not finite"),
            Line("train/skipped_steps", "steps skipped for a loss or gradient that is not"),
            Line("train/loss_spikes", "spikes of the loss"),
        ),
    ),
    Panel("gradients", "norm before clipping", (Line("train/grad_norm", "of all parameters"),), log=True),
)
PARTS = 240  # of a curve: one for about two pixels
MAX_SERIES = 32  # of a chart
MAX_CHARTS = 60
MAX_POINTS = 36_000  # of all charts together; where there are more curves, each has fewer points
LEAST_PARTS = 40


@dataclass(frozen=True)
class Charts:
    """All charts of a run.

    Args:
        charts: those of the dashboard first.
        parts: points that a curve has at most.
    """

    charts: Sequence[Chart]
    parts: int


def charts_of(curves: Curves, marks: Sequence[Mark]) -> Charts:
    """All charts of a run.

    Args:
        curves: of the run.
        marks: what happened at which step.
    """
    figures = {key: curve for key, curve in curves.figures.items() if len(curve.steps)}
    if not figures:
        return Charts([], PARTS)
    first = min(float(curve.steps[0]) for curve in figures.values())
    last = max(float(curve.steps[-1]) for curve in figures.values())
    chosen = [(panel, panel.assign(figures)) for panel in PANELS]
    rest = figures.keys() - {key for _, keys in chosen for key in keys}
    chosen += [(panel, panel.assign(rest)) for panel in MORE_PANELS]
    rest -= {key for _, keys in chosen for key in keys}
    chosen += [(panel, panel.assign(rest)) for panel in _others(rest)]
    chosen = [(panel, keys) for panel, keys in chosen if keys][:MAX_CHARTS]
    drawn = sum(min(len(keys), MAX_SERIES) for _, keys in chosen)
    parts = max(LEAST_PARTS, min(PARTS, MAX_POINTS // max(1, drawn)))
    charts = []
    for number, (panel, keys) in enumerate(chosen):
        series = [
            Series(
                label(key, line),
                thin(figures[key].steps, figures[key].values, first, last, parts),
                line.bold,
                place / max(1, len(keys) - 1) if panel.ordered else None,
            )
            for place, (key, line) in enumerate(keys.items())
        ]
        charts.append(
            Chart(
                f"chart-{number}",
                panel.title,
                panel.unit,
                series[:MAX_SERIES],
                first,
                last,
                panel.log,
                [mark for mark in marks if first < mark.step <= last],
                len(series) - MAX_SERIES if len(series) > MAX_SERIES else 0,
            )
        )
    return Charts(charts, parts)


def _others(keys: set[str]) -> list[Panel]:
    """A panel for all figures that share what precedes their last slash."""
    groups: dict[str, list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(key.rpartition("/")[0], []).append(key)
    return [
        Panel(group, "as logged", tuple(Line(re.escape(key), r"\g<0>") for key in group_keys))
        for group, group_keys in groups.items()
    ]
