"""`Reader`: a raw corpus that can be divided into units of work before any of it is read.

Notable:
- `plan` lists the units in a fixed order from names and sizes alone; how they are grouped into tasks, and
  how many workers run, changes neither the documents nor their order.
- `read` streams one unit in constant memory. Whatever is wrong with one document is yielded as a
  `BadSample`, so that reading goes on; what is wrong with the corpus raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from datatrove.data import Document

from datamodules.prepare.configured import Configured
from datamodules.prepare.readers.compression import CHUNK_BYTES


class CorpusChangedError(RuntimeError):
    """What is read is not what was planned: a preparation of both would belong to neither."""


@dataclass(frozen=True)
class WorkUnit:
    """A part of a corpus that one task reads from beginning to end; plain data, written into the plan.

    Args:
        path: of the file or folder, or a name that the reader understands.
        start, stop: the part of it, in whatever the reader counts (bytes, row groups, rows); 0, -1: all.
        size: bytes on disk (for rows without files: an estimate), for grouping and progress.
        modified: time of the last change in nanoseconds, 0 where there is none; a resumed preparation
            refuses a corpus that has changed.
    """

    path: str
    start: int
    stop: int
    size: int
    modified: int = 0


@dataclass(frozen=True)
class BadSample:
    """A document that cannot be used.

    Args:
        where: file and place in it, written as in the ids of documents.
        kind: a few words that it is counted by ("invalid UTF-8", "broken JSON").
        message: what exactly is wrong and what to do.
    """

    where: str
    kind: str
    message: str


class Reader(Configured, ABC):
    """One kind of raw corpus; chosen by `class_path` in a config's `sources`.

    Constructors touch no disk: a config can be printed on a machine without the data.
    """

    bytes_read = 0
    """Bytes of the current unit read so far, for progress; whoever starts a unit sets it to 0."""

    @abstractmethod
    def plan(self) -> Iterator[WorkUnit]:
        """The units, in a fixed order.

        Raises:
            FileNotFoundError: if the corpus is not there.
            PermissionError: if a folder or file of it may not be read; names it.
            ValueError: if there is nothing in it.
        """

    @abstractmethod
    def read(self, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        """The documents of one unit, in order, made by `datamodules.prepare.document.pack`.

        Args:
            unit: one of `plan`'s.
            source: name of the source in the config; part of the documents' ids.
        Raises:
            CorpusChangedError: if the unit is no longer what was planned.
        """

    def chunks(self, file: BinaryIO) -> Iterator[bytes]:
        """The rest of a file in pieces of fixed size, counted for progress."""
        while chunk := file.read(CHUNK_BYTES):
            self.bytes_read += len(chunk)
            yield chunk
