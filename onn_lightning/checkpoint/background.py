"""`BackgroundWriter`: one write at a time beside the training, whose failure is told to whoever waits for it.

`Saves` says of each save whether it is such a write.

Notable:
- At most one write is under way: whoever starts the next one waits for it first, so no more than one copy
  of a run's state waits to be written.
- A failure is kept until somebody waits, and is then raised as it was.
- Ctrl-C while waiting gives the write up: the stop event is set, which `checkpoint.writing` looks at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Job = Callable[[threading.Event], None]
"""A write; gives up once the event is set."""

_POLL_SECONDS = 1.0
_SECONDS_TO_STOP = 5.0


class BackgroundWriter:
    """Runs jobs in a thread of its own, one after the other."""

    def __init__(self) -> None:
        # not `Thread.join`: interrupted by Ctrl-C, it takes a thread that goes on for one that has ended
        self._ended = threading.Event()
        self._ended.set()
        self._error: BaseException | None = None
        self._stop = threading.Event()

    def start(self, job: Job) -> None:
        """Begin a job, as soon as the one before it has ended.

        Raises:
            Exception: what the job before it failed with; this one is not begun.
        """
        self.wait()
        self._stop, self._ended = threading.Event(), threading.Event()
        # a daemon: a write that was given up and hangs in the file system does not hold the process
        thread = threading.Thread(target=self._run, args=(job,), name="checkpoint writer", daemon=True)
        thread.start()

    def run(self, job: Job) -> None:
        """Do a job here and now; a failure is kept for `wait`, as that of a job in the background."""
        self.wait()
        try:
            job(threading.Event())
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        """Return when nothing is under way.

        Raises:
            Exception: what the job failed with.
            KeyboardInterrupt: if the user does not want to wait; the job is given up.
        """
        try:
            while not self._ended.wait(_POLL_SECONDS):
                pass
        except KeyboardInterrupt:
            self._stop.set()
            self._ended.wait(_SECONDS_TO_STOP)
            raise
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Job) -> None:
        try:
            job(self._stop)
        except BaseException as error:  # whatever it is, the training thread must learn of it
            self._error = error
        finally:
            self._ended.set()


@dataclass(frozen=True)
class _Way:
    """How one save is done: in the background or not, and what is done once the checkpoint is complete."""

    in_background: bool
    then: Callable[[], None] | None


class Saves:
    """The saves of what writes a trainer's checkpoints: the plugin for files, the strategy for shards."""

    def __init__(self) -> None:
        self._writer = BackgroundWriter()
        self._way: _Way | None = None

    @contextmanager
    def next_save(self, in_background: bool, then: Callable[[], None] | None) -> Iterator[None]:
        """In this block a save does not raise what goes wrong with its files: `wait` does.

        Args:
            in_background: copy the state, and write the copy while training goes on.
            then: what to do once the checkpoint is complete, in the thread that wrote it; None: nothing.
        """
        self._way = _Way(in_background, then)
        try:
            yield
        finally:
            self._way = None

    def save(self, write: Job, copied: Callable[[], Job]) -> None:
        """Save in the way of the block that this is called in; outside of one, here and now.

        Args:
            write: writes the state as it is.
            copied: copies the state, and returns what writes the copy.
        Raises:
            Exception: what the save before it failed with; outside of a block also what this one does.
        """
        self.wait()
        if self._way is None:
            write(threading.Event())
        elif self._way.in_background:
            self._writer.start(_followed(copied(), self._way.then))
        else:
            self._writer.run(_followed(write, self._way.then))

    def wait(self) -> None:
        """Return when no write is under way.

        Raises:
            Exception: what the save of the last `next_save` failed with.
            KeyboardInterrupt: if the user does not want to wait; the write is given up.
        """
        self._writer.wait()


def _followed(write: Job, then: Callable[[], None] | None) -> Job:
    def both(stop: threading.Event) -> None:
        write(stop)
        if then is not None:
            then()

    return both
