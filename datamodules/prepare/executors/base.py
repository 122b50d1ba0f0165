"""What every executor is given and does: stages of tasks, run one after the other.

Notable:
- A task is one call of datatrove's `_run_for_rank`: its completion marks, logs and statistics are
  datatrove's, in `<folder>/<stage>/`. A task that has its mark is never run again.
- A task that fails is named with its stage, what it worked on and the place of its log. What it failed
  of travels as text (`TaskFailure`): not every exception survives the way between two processes.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from datatrove.pipeline.base import PipelineStep

_OURS = Path(__file__).parents[2]
_STATED = (ValueError, RuntimeError, TypeError, ImportError)
_NAMED_TASKS = 5
RESUME = "run the same command with --resume"


class PreparationError(RuntimeError):
    """A preparation cannot go on; what is complete is kept for `--resume`."""


@dataclass(frozen=True)
class Stage:
    """Tasks that do the same with different parts of the corpus, in any order.

    Args:
        name: of its folder, and in messages.
        steps: datatrove's pipeline; each task runs a copy.
        sizes: bytes that each task reads, for the progress bar.
        subject: of a task's number: what it works on, for messages.
    """

    name: str
    steps: Sequence[PipelineStep]
    sizes: Sequence[int]
    subject: Callable[[int], str]

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self.sizes)


class Progress(Protocol):
    """Somebody who watches; see `datamodules.prepare.progress_bar`."""

    def begin(self, stage: Stage, completed: Sequence[int]) -> None:
        """A stage begins, of which these tasks were completed earlier."""

    def done(self, task: int) -> None:
        """A task of the stage is complete."""

    def refresh(self) -> None:
        """Called a few times a second."""


class Executor(ABC):
    """Runs stages; chosen by `class_path` in a config's `executor`.

    Args:
        workers: tasks that run at the same time; None: as many as there are CPUs (or, on a cluster, as
            many as it gives room to).
    Raises:
        ValueError: if there is not at least one.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"`workers` must be at least 1, got {workers}; or leave it out")
        self.workers = workers

    @abstractmethod
    def run(self, stages: Sequence[Stage], folder: Path, progress: Progress) -> None:
        """Run what is not complete yet of every stage, each once the stage before it is complete.

        Args:
            stages: in order.
            folder: for the marks, logs and statistics of each stage.
            progress: is told of every completed task.
        Raises:
            PreparationError: if a task failed or its worker died; names both.
        """


@dataclass(frozen=True)
class TaskFailure:
    """Why a task failed, as text.

    Args:
        task: its number.
        message: what went wrong, one line.
        trace: the whole traceback.
    """

    task: int
    message: str
    trace: str

    @classmethod
    def of(cls, task: int, error: BaseException) -> TaskFailure:
        """Describe an exception; one that states its reason itself needs no place in the code."""
        message = " ".join(str(error).split())
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        elif not isinstance(error, OSError) and not (
            isinstance(error, _STATED) and _OURS in Path(frame.filename).parents
        ):
            message = f"{type(error).__name__}: {message} ({frame.filename}:{frame.lineno}, in {frame.name})"
        return cls(task, message, "".join(traceback.format_exception(error)))


class FailedThere(Exception):
    """Carries the traceback of another process, shown by `--debug`."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def raise_failure(stage: Stage, failure: TaskFailure, folder: Path) -> NoReturn:
    """Raise what a task failed of.

    Args:
        stage: of the task.
        failure: of the task.
        folder: of all stages.
    """
    log = folder / stage.name / "logs" / f"task_{failure.task:05d}.log"
    raise PreparationError(
        f"stage {stage.name}, {described(stage, failure.task)}: {failure.message}; mend it and {RESUME}"
        f"{f' (log: {log})' if log.exists() else ''}"
    ) from FailedThere(failure.trace)


def refuse_incomplete(stage: Stage, incomplete: Sequence[int], folder: Path) -> None:
    """Make sure that all tasks of a stage have their completion marks.

    Args:
        stage: that has ended.
        incomplete: tasks without a mark.
        folder: of all stages.
    Raises:
        PreparationError: naming the first few that have none.
    """
    if incomplete:
        named = ", ".join(described(stage, task) for task in incomplete[:_NAMED_TASKS])
        more = f" and {len(incomplete) - _NAMED_TASKS} more" if len(incomplete) > _NAMED_TASKS else ""
        raise PreparationError(
            f"stage {stage.name} has ended without completing {named}{more}; see the logs in "
            f"{folder / stage.name / 'logs'} and {RESUME}"
        )


def described(stage: Stage, task: int) -> str:
    """A task, for messages: its number, and what it works on."""
    subject = stage.subject(task)
    return f"task {task} ({subject})" if subject else f"task {task}"
