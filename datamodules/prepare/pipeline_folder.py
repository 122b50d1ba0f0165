"""`WorkFolder`: where a preparation lives until it is complete, `<output>.partial/`.

```
<output>.partial/
  lock             held by the process that prepares
  config.json      what the result depends on; a resumed preparation must have the same
  plan.jsonl       the corpus, divided into tasks
  stages/          completion marks, logs and statistics of each stage
  kept/ copies/ records/ progress/    what the stages hand to each other
  result/          what becomes <output>
```
Notable:
- The result appears under its name by one rename, after all of it is on the disk: an output that exists
  is complete. The old one that `--overwrite` replaces is moved away just before that, and deleted after.
- The lock is the kernel's: however its holder ends, it is free again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from datamodules.prepare.executors.base import PreparationError
from datamodules.prepare.executors.local import WORKERS_LOCK

_LOCK = "lock"
_REPLACED = "replaced"


class WorkFolder:
    """The work folder of one output, locked; a context manager.

    Args:
        output: of the preparation.
        wait_seconds: how long the last worker of a killed run may take to notice.
    Raises:
        PreparationError: on entering, if another process prepares the same output.
        OSError: on entering, if the folder cannot be made.
    """

    def __init__(self, output: Path, wait_seconds: float = 20.0) -> None:
        self.output, self._wait_seconds = output, wait_seconds
        self.path = output.with_name(f"{output.name}.partial")
        self.result = self.path / "result"
        self.stages = self.path / "stages"
        self.progress = self.path / "progress"
        self.config = self.path / "config.json"
        self._lock: int | None = None

    @property
    def begun(self) -> bool:
        """Whether an earlier run has left something to go on from."""
        return self.config.exists()

    @property
    def published(self) -> bool:
        """Whether an earlier run was ended after it gave the result its name."""
        return self.begun and not self.result.exists()

    def __enter__(self) -> WorkFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take(lock)
            self._wait_for_workers()
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            if self.path.exists() and not self.begun:  # nothing to go on from
                shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove all that an earlier run has left, but for an output that it was just replacing."""
        replaced = self.path / _REPLACED
        if replaced.exists() and not self.output.exists():
            os.rename(replaced, self.output)
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry == self.config):  # which goes last
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()

    def publish(self) -> None:
        """Give the complete result its name, and remove the work folder."""
        _flush(self.result)
        if self.output.exists():
            os.rename(self.output, self.path / _REPLACED)
        os.rename(self.result, self.output)
        _flush_entry(self.output.parent)
        self.clear()
        shutil.rmtree(self.path)

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock), os.stat(self.path / _LOCK)):
                raise FileNotFoundError  # the other process has just completed and removed the folder
        except (BlockingIOError, FileNotFoundError) as error:
            holder = os.read(lock, 100).decode(errors="replace") or "just started"
            raise PreparationError(
                f"'{self.output}' is being prepared by another process ({holder}): wait for it, end it, or "
                "choose another --output"
            ) from error
        os.truncate(lock, 0)
        with suppress(OSError):  # a full disk does not matter here
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _wait_for_workers(self) -> None:
        """Workers of a killed run end with it, but not in the same instant."""
        self.stages.mkdir(exist_ok=True)
        workers = os.open(self.stages / WORKERS_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            end = time.monotonic() + self._wait_seconds
            while True:
                try:
                    fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError as error:
                    if time.monotonic() > end:
                        raise PreparationError(
                            f"worker processes of an earlier run still write into '{self.path}': end them"
                        ) from error
                    time.sleep(0.05)
        finally:
            os.close(workers)


def _flush(folder: Path) -> None:
    """Bring a folder and all that is in it to the disk."""
    for path, _, files in os.walk(folder):
        for name in files:
            _flush_entry(Path(path) / name)
        _flush_entry(Path(path))


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
