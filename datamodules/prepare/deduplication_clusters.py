"""From pairs of copies to what is dropped: `ClusterStep`, once, and `DropCopiesStep`, in every task.

Notable:
- Documents are numbered by task and place in it, which is corpus order. A cluster is all that pairs connect;
  its first document stays. Neither the order of the pairs nor the cut into tasks changes that.
- A dropped document is an "exact copy" if an earlier one equals it, else a "near copy".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from datamodules.prepare.records import StepRecord
from datamodules.prepare.step import RecordedStep
from onn_lightning.compiled import kernel

EXACT, NEAR = "exact copy", "near copy"
"""Reasons that the record counts by."""

_COPIES = "copies.npy"
_COPY = np.dtype([("document", "<u8"), ("exact", "?")])
_PAIRS_READ = 1 << 20
_TASK_SHIFT = 32

Numbers = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


class ClusterStep(PipelineStep):  # type: ignore[misc]  # datatrove is not typed
    """Writes the list of all copies; runs as one task.

    Args:
        pairs: folder of `PairStep`.
        folder: to write `copies.npy` to.
        num_files: how many files of pairs there must be.
        exact_bucket: number of the bucket whose pairs are equal.
    """

    type = "onn"
    name = "clusters of copies"

    def __init__(self, pairs: Path, folder: Path, num_files: int, exact_bucket: int) -> None:
        super().__init__()
        self.pairs, self.folder = pairs, folder
        self.num_files, self.exact_bucket = num_files, exact_bucket

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """datatrove's entry.

        Raises:
            RuntimeError: if files of pairs are missing.
        """
        files = sorted(self.pairs.glob("*.dups"))
        if len(files) != self.num_files:
            raise RuntimeError(
                f"'{self.pairs}' holds {len(files)} files of pairs, {self.num_files} are needed: run the "
                "stage before this one to its end"
            )
        with self.track_time():
            documents = np.empty(0, dtype=np.uint64)  # all that have a copy, in corpus order
            for pairs in _read(files):
                documents = np.union1d(documents, pairs.ravel())
            first = np.arange(len(documents))  # place of a document towards the first of its cluster
            equal = first.copy()
            for pairs in _read(files):
                _unite(np.searchsorted(documents, pairs), first)
            for pairs in _read(file for file in files if int(file.stem.split("_")[0]) == self.exact_bucket):
                _unite(np.searchsorted(documents, pairs), equal)
            dropped = np.flatnonzero(first != np.arange(len(documents)))
            copies = np.empty(len(dropped), dtype=_COPY)
            copies["document"] = documents[dropped]
            copies["exact"] = equal[dropped] != dropped
        self.stat_update("copies", value=len(copies))
        beside = self.folder / f"{_COPIES}.partial"
        with beside.open("wb") as file:
            np.save(file, copies)
        os.replace(beside, self.folder / _COPIES)


class DropCopiesStep(RecordedStep):
    """Drops copies.

    Args:
        folder: of `ClusterStep`.
    """

    name = "deduplication"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def process(self, documents: Iterable[Document], record: StepRecord, task: int) -> Iterator[Document]:
        """Drop those of one task.

        Raises:
            FileNotFoundError: if copies were not looked for.
            RuntimeError: if there are fewer documents than when signatures were written.
        """
        copies = iter(self._copies_in(task))
        following = next(copies, None)
        number = -1
        for number, document in enumerate(documents):
            if following is None or number != following[0]:
                record.kept += 1
                self.stat_update("total", "forwarded")
                yield document
                continue
            self.stat_update("total", "dropped")
            record.drop(EXACT if following[1] else NEAR, document.id, document.text)
            following = next(copies, None)
        if following is not None:
            raise RuntimeError(
                f"task {task} has {number + 1} documents, deduplication saw document {following[0]} in it: "
                "documents and signatures are of different runs; prepare again from the start"
            )

    def _copies_in(self, task: int) -> list[tuple[int, bool]]:
        """(number in the task, exact) of the task's copies, in order."""
        path = self.folder / _COPIES
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' does not exist: run the stages of the deduplication first")
        copies = np.load(path, mmap_mode="r")  # never whole in memory: there may be many tasks beside this
        start, end = (_count_before(copies, number << _TASK_SHIFT) for number in (task, task + 1))
        own = np.array(copies[start:end])
        numbers = own["document"] - np.uint64(task << _TASK_SHIFT)
        return list(zip(numbers.tolist(), own["exact"].tolist(), strict=True))


def _count_before(copies: npt.NDArray[np.void], document: int) -> int:
    """How many copies come before a document, by bisection: a mapped table's column would be copied whole."""
    low, high = 0, len(copies)
    while low < high:
        middle = (low + high) // 2
        if int(copies[middle]["document"]) < document:
            low = middle + 1
        else:
            high = middle
    return low


def _read(files: Iterable[Path]) -> Iterator[Numbers]:
    """[n, 2] pairs of documents, a part of a file at a time."""
    for path in files:
        with path.open("rb") as file:
            while len(part := np.fromfile(file, dtype="<u4", count=4 * _PAIRS_READ)):
                fields = part.reshape(-1, 2).astype(np.uint64)  # (task, number) of one document a row
                yield ((fields[:, 0] << np.uint64(_TASK_SHIFT)) | fields[:, 1]).reshape(-1, 2)


def _unite(pairs: Places, first: Places) -> None:
    """Join the clusters of pairs, then let every document point at the first of its own."""
    _join(pairs, first)
    _flatten(first)


@kernel
def _join(pairs: Places, first: Places) -> None:
    for i in range(len(pairs)):
        a, b = pairs[i, 0], pairs[i, 1]
        while first[a] != a:
            first[a] = first[first[a]]
            a = first[a]
        while first[b] != b:
            first[b] = first[first[b]]
            b = first[b]
        if a < b:
            first[b] = a
        else:
            first[a] = b


@kernel
def _flatten(first: Places) -> None:
    for i in range(len(first)):
        first[i] = first[first[i]]  # pointers lead to smaller places, which are flat already
