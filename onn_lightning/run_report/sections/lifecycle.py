"""Lifecycle: every start of the run, and every time its network was reshaped or rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from onn_lightning.run_report.markup import Content, Safe, clipped, join, paragraph, table
from onn_lightning.run_report.quantities import duration, moment
from onn_lightning.run_report.record import RUNNING, Start
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section
from onn_lightning.run_report.state import State

MAX_ROWS = 100


def section(run: Run, state: State) -> Section:
    """What happened to the run."""
    starts = run.record.starts if run.record is not None else ()
    body = join(_starts(starts, state) if starts else _unknown(run), _reshaped(run))
    return Section("lifecycle", "Lifecycle", body)


def _unknown(run: Run) -> Safe:
    said = "Starts are not recorded."
    if run.logs_written is not None:
        said += f" The logs were last written at {moment(run.logs_written)}."
    return paragraph(said, class_="faint")


def _starts(starts: Sequence[Start], state: State) -> Safe:
    rows: list[list[Content]] = []
    for number, start in enumerate(starts, 1):
        is_newest = number == len(starts)
        how = start.state if start.state != RUNNING else (state.word if is_newest else "killed")
        differs = _changes(starts[number - 2], start) if number > 1 else ""
        rows.append(
            [
                f"{number}",
                moment(start.started),
                duration(max(0.0, start.alive - start.started)),
                f"{start.first_step:,}",
                f"{start.last_step:,}",
                how,
                clipped("; ".join(filter(None, (start.error, differs))), 300),
            ]
        )
    left_out = len(rows) - MAX_ROWS
    note = f"{left_out:,} earlier starts are not listed. " if left_out > 0 else ""
    if any(later.first_step < earlier.last_step for earlier, later in pairwise(starts)):
        note += (
            "Where a start goes on from an earlier step than the one before ended at, those steps were "
            "trained anew."
        )
    headings = ["start", "when", "for", "from step", "to step", "then", "what was new"]
    return join(
        table("starts", headings, rows[-MAX_ROWS:], (3, 4)),
        paragraph(note, class_="faint") if note else None,
    )


def _changes(before: Start, after: Start) -> str:
    changed = [
        f"{name} {after.versions[name]}"
        for name in after.versions
        if before.versions.get(name) != after.versions[name]
    ]
    changed += [f"{after.processes:,} processes"] if before.processes != after.processes else []
    changed += [after.device] if before.device != after.device else []
    changed += [f"precision {after.precision}"] if before.precision != after.precision else []
    return ", ".join(changed)


def _reshaped(run: Run) -> Safe | None:
    if run.described is None:
        return None
    if not run.described.reshaped:
        return paragraph("The network was never grown, pruned or rolled back.", class_="faint")
    rows = [[f"{entry.step:,}", clipped(entry.what, 400)] for entry in run.described.reshaped[-MAX_ROWS:]]
    return table("growth, pruning and roll-backs", ["step", "what was done"], rows)
