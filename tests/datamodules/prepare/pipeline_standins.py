"""Steps of a few lines for tests of the executors; workers import this file."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from datamodules.prepare.executors import Stage
from datamodules.prepare.step import Filter


class Write(PipelineStep):  # type: ignore[misc]
    """Writes one file a task, which names the process, after some seconds."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        super().__init__()
        self.folder, self.seconds = folder, seconds

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from data or ()
        print("printed by a step")
        (self.folder / f"{rank}.begun").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        with (self.folder / f"{rank}").open("a") as file:
            file.write(f"{os.getpid()}\n")


class Fail(PipelineStep):  # type: ignore[misc]
    """Fails in one task, in a way; where a marker is given, only before that is there."""

    def __init__(self, task: int, how: str, marker: Path | None = None) -> None:
        super().__init__()
        self.task, self.how, self.marker = task, how, marker

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from data or ()
        if rank == self.task and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            if self.how == "raise":
                raise ZeroDivisionError("seven by nothing")
            if self.how == "unpicklable":
                raise Unpicklable("one", "two")
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "crash":
                ctypes.string_at(0)
            if self.how == "exit":
                os._exit(7)


class Unpicklable(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


class Watcher:
    """Remembers what an executor tells."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, list[int]]] = []
        self.completed: list[int] = []

    def begin(self, stage: Stage, completed: Iterable[int]) -> None:
        self.begun.append((stage.name, list(completed)))

    def done(self, task: int) -> None:
        self.completed.append(task)

    def refresh(self) -> None:
        pass


def stage(name: str, *steps: PipelineStep, tasks: int = 4) -> Stage:
    """A stage whose tasks work on files "part 0", "part 1", ..."""
    return Stage(name, list(steps), [1] * tasks, lambda task: f"part {task}")


class KillOnce(Filter):
    """Kills its process at the first document that says so, but only once."""

    name = "kill once"

    def __init__(self, marker: str, at: str) -> None:
        super().__init__()
        self.marker, self.at = marker, at

    def judge(self, document: Document) -> str | None:
        if self.at in document.text and not os.path.exists(self.marker):
            os.mkdir(self.marker)  # a file that an argument names would be part of the config
            os.kill(os.getpid(), signal.SIGKILL)
        return None
