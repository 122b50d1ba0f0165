"""Whether a run is finished, going on, or was stopped - as far as its folder tells.

Notable: a process that is killed cannot say so. A run that says it is running and has not written for a
quarter of an hour is shown as silent, with the time of its last sign of life.
"""

from __future__ import annotations

from dataclasses import dataclass

from onn_lightning.run_report.quantities import duration, moment
from onn_lightning.run_report.record import FAILED, FINISHED, INTERRUPTED, RUNNING
from onn_lightning.run_report.run import Run

SILENT = "silent"
UNKNOWN = "unknown"
SILENT_AFTER = 900.0  # seconds; it writes every half minute, and after a validation


@dataclass(frozen=True)
class State:
    """How a run stands.

    Args:
        word: FINISHED, RUNNING, INTERRUPTED, FAILED, SILENT or UNKNOWN.
        sentence: what that means here.
        step: optimizer steps done.
        max_steps: after which training ends; 0: not known, or not by steps.
    """

    word: str
    sentence: str
    step: int
    max_steps: int


def state_of(run: Run, now: float) -> State:
    """How a run stands.

    Args:
        run: of any age.
        now: seconds since 1970.
    """
    step, max_steps = _steps(run)
    newest = run.record.starts[-1] if run.record is not None and run.record.starts else None
    alive = max([newest.alive if newest else 0.0, run.logs_written or 0.0])
    ago = f"last sign of life {moment(alive)}, {duration(max(0.0, now - alive))} before this page was made"
    if newest is not None and newest.state == FINISHED:
        return State(FINISHED, f"ended by itself at {moment(newest.alive)}", step, max_steps)
    if newest is not None and newest.state == INTERRUPTED:
        return State(INTERRUPTED, f"stopped from outside at {moment(newest.alive)}", step, max_steps)
    if newest is not None and newest.state == FAILED:
        return State(FAILED, f"{newest.error} ({moment(newest.alive)})", step, max_steps)
    if not alive:
        return State(UNKNOWN, "nothing was logged yet", step, max_steps)
    if newest is None and max_steps and step >= max_steps:
        return State(FINISHED, f"all steps are logged; {ago}", step, max_steps)
    if now - alive < SILENT_AFTER:
        return State(RUNNING, ago, step, max_steps)
    return State(SILENT, f"killed, or hanging: {ago}", step, max_steps)


def _steps(run: Run) -> tuple[int, int]:
    """Steps done, and steps to do."""
    done = run.curves.last_step + 1 if run.curves.figures else 0  # the first step is logged as 0
    if run.described is not None:
        done = max(done, run.described.step)
    to_do = run.settings.at("trainer", "max_steps") if run.settings is not None else None
    to_do = to_do if isinstance(to_do, int) and to_do > 0 else 0
    if run.record is None or not run.record.starts:
        return done, to_do
    newest = run.record.starts[-1]
    # a start that goes on from an earlier checkpoint has undone what was logged beyond it
    return max(newest.last_step, newest.first_step), run.record.max_steps or to_do
