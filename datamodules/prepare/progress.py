"""How far tasks have come: a tiny file a task, written while it runs, summed by whoever shows it.

Notable:
- The file of a task holds two numbers, bytes and documents, as text; it is replaced as a whole, so that
  a reader never sees half of it. It says nothing about the result and may vanish at any time.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """How much has been read.

    Args:
        bytes: of the corpus.
        documents: good ones.
    """

    bytes: int = 0
    documents: int = 0


class ProgressFile:
    """Writes the progress of one task, at most once a second.

    Args:
        folder: of the progress files of all tasks; made if it is not there.
        task: number of the task.
    """

    def __init__(self, folder: Path, task: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{task:05d}"
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether the last report is a second old."""
        return time.monotonic() >= self._next

    def report(self, progress: Progress) -> None:
        """Write the file; a full disk does not stop the task here."""
        self._next = time.monotonic() + _SECONDS
        beside = self._path.with_suffix(".partial")
        with suppress(OSError):
            beside.write_text(f"{progress.bytes} {progress.documents}\n", encoding="ascii")
            os.replace(beside, self._path)


def read_progress(folder: Path, task: int) -> Progress | None:
    """The progress of one task; None: it has not begun."""
    return _read(folder / f"{task:05d}")


def total_progress(folder: Path) -> Progress:
    """The progress of all tasks together."""
    files = folder.iterdir() if folder.is_dir() else ()
    found = [progress for path in files if path.name.isdigit() and (progress := _read(path)) is not None]
    return Progress(sum(each.bytes for each in found), sum(each.documents for each in found))


def _read(path: Path) -> Progress | None:
    try:
        size, documents = path.read_text(encoding="ascii").split()
        return Progress(int(size), int(documents))
    except (OSError, ValueError):
        return None
