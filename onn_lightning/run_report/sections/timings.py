"""Timings: speed, where the time goes, and what checkpoints take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onn_lightning.run_report.markup import Content, Safe, element, facts, join, paragraph, table
from onn_lightning.run_report.quantities import count, duration, figure, moment, share, size
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section

MAX_CHECKPOINTS = 12
VALIDATION = "validation"


def section(run: Run) -> Section:
    """The timings of a run."""
    speed = list(_speed(run))
    parts = [facts(speed) if speed else paragraph("No speed was logged yet.", class_="faint")]
    phases = _phases(run)
    return Section("timings", "Timings", join(parts, phases, _checkpoints(run)))


def _speed(run: Run) -> Iterator[tuple[str, Content]]:
    for name, key, show in (
        ("tokens a second", "train/tokens_per_second", figure),
        ("MFU", "train/mfu", share),
        ("waiting for data", "train/data_wait", share),
        ("peak memory (GB)", "train/memory_gb", figure),
    ):
        curve = run.curves.figures.get(key)
        if curve is not None and np.isfinite(curve.values).any():
            values = curve.values[np.isfinite(curve.values)]
            low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
            yield (
                name,
                [
                    show(middle),
                    element(
                        "small",
                        f"median; newest {show(float(values[-1]))}, 80 % from {show(low)} to {show(high)}",
                    ),
                ],
            )
    if run.record is not None and run.record.starts:
        seconds = {**run.record.totals.seconds}
        seconds.pop(VALIDATION, None)
        steps = run.record.starts[-1].last_step
        if steps and sum(seconds.values()) > 0:
            yield (
                "a step",
                [
                    duration(sum(seconds.values()) / steps),
                    element("small", "mean, without validation, with what is between steps"),
                ],
            )


def _phases(run: Run) -> Safe | None:
    if run.record is None or not run.record.totals.seconds:
        return None
    seconds, steps = run.record.totals.seconds, run.record.starts[-1].last_step if run.record.starts else 0
    whole = sum(seconds.values()) or 1.0
    rows = []
    for phase, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
        part = share(spent / whole)
        bar = element("progress", part, value=f"{spent / whole:.4f}", max=1, aria_label=f"{phase}: {part}")
        each = duration(spent / steps) if steps and phase != VALIDATION else ""
        rows.append([phase, duration(spent), part, bar, each])
    note = (
        "On a GPU the phases of a step overlap and only the whole step is timed; “between steps” is the "
        "loader, logs and checkpoints. Steps that a resumption made undone are not counted."
    )
    return join(
        table("where the time went", ["phase", "time", "share", "", "a step"], rows, (1, 2, 4)),
        paragraph(note, class_="faint"),
    )


def _checkpoints(run: Run) -> Safe:
    if not run.checkpoints:
        return paragraph("No checkpoint was written yet.", class_="faint")
    shown = run.checkpoints[::-1][:MAX_CHECKPOINTS]
    rows = [[file.name, size(file.num_bytes), moment(file.written)] for file in shown]
    everything = sum(file.num_bytes for file in run.checkpoints)
    caption = f"checkpoints: {count(len(run.checkpoints))}, {size(everything)} together"
    left_out = len(run.checkpoints) - len(shown)
    note = paragraph(f"{left_out:,} older ones are not listed.", class_="faint") if left_out else None
    return join(table(caption, ["file", "size", "written"], rows, (1,)), note)
