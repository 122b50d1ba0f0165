"""`ProgressBar`: how far a preparation has come, on a terminal as a bar, elsewhere as plain lines.

Notable:
- What is shown comes from two places: completed tasks, told by the executor, and the progress files of the
  tasks that run, wherever they run.
- Rate and time left count what this run did: tasks that an earlier run completed move the bar, not the
  rate.
- A log file gets a line when a stage ends, and one every half minute before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console

from datamodules.prepare.executors.base import Stage
from datamodules.prepare.progress import Progress, read_progress

_LINE_SECONDS = 30.0
_POLLED_TASKS = 64
"""Tasks run in about the order of their numbers: the first few that are not complete are those that run."""
_MB = 1e6


class ProgressBar:
    """Shows stages one after the other; a context manager.

    Args:
        stages: how many stages there will be.
        folder: of the progress files of each stage; one without is counted in tasks alone.
        console: where to; None: stderr.
    """

    def __init__(self, stages: int, folder: Path, console: Console | None = None) -> None:
        self._stages, self._folder = stages, folder
        self._console = console or Console(stderr=True, highlight=False)
        self._bar: rich_progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.TextColumn("{task.fields[state]}"),
                console=self._console,
                transient=True,
            )
        self._number = 0

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, stage: Stage, completed: Sequence[int]) -> None:
        """A stage begins, of which these tasks were completed earlier."""
        self._stage = stage
        self._number += 1
        self._open = sorted(set(range(stage.tasks)) - set(completed))
        self._complete = Progress(sum(stage.sizes[task] for task in completed))
        self._total = sum(stage.sizes)
        self._before = self._complete.bytes
        self._started = time.monotonic()
        self._next_line = self._started + _LINE_SECONDS
        if self._bar is not None:
            for row in self._bar.task_ids:
                self._bar.remove_task(row)
            self._bar.add_task(f"{stage.name} {self._number}/{self._stages}", total=self._total, state="")
        if not self._open:
            self._line(self._complete)

    def done(self, task: int) -> None:
        """A task of the stage is complete."""
        self._open.remove(task)
        of_task = self._of(task) or Progress()
        self._complete = Progress(
            self._complete.bytes + self._stage.sizes[task], self._complete.documents + of_task.documents
        )
        if not self._open:
            self._line(self._complete)

    def refresh(self) -> None:
        """Show the state; called a few times a second."""
        now = self._so_far()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=now.bytes, state=self._state(now))
        elif self._open and time.monotonic() >= self._next_line:
            self._next_line += _LINE_SECONDS
            self._line(now)

    def _of(self, task: int) -> Progress | None:
        return read_progress(self._folder / self._stage.name, task)

    def _so_far(self) -> Progress:
        size, documents = self._complete.bytes, self._complete.documents
        for task in self._open[:_POLLED_TASKS]:
            of_task = self._of(task)
            if of_task is not None:
                size += min(of_task.bytes, self._stage.sizes[task])
                documents += of_task.documents
        return Progress(size, documents)

    def _state(self, now: Progress) -> str:
        tasks = self._stage.tasks
        parts = [f"{now.bytes / max(1, self._total):4.0%}", f"{tasks - len(self._open)}/{tasks} tasks"]
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = (now.bytes - self._before) / seconds
        if now.documents:
            parts += [f"{rate / _MB:.1f} MB/s", f"{now.documents / seconds:,.0f} documents/s"]
        if self._open and rate > 0:
            left = timedelta(seconds=round((self._total - now.bytes) / rate))
            parts.append(f"{left} left")
        elif now.bytes == self._before and not self._open:
            parts.append("complete already")
        elif not self._open:
            parts.append(f"in {timedelta(seconds=round(seconds))}")
        return ", ".join(parts)

    def _line(self, now: Progress) -> None:
        """A line that stays, below which a terminal's bar goes on."""
        self._console.print(
            f"{self._stage.name} {self._number}/{self._stages}: {self._state(now)}", soft_wrap=True
        )
