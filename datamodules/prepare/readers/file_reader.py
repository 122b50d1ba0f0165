"""`FileReader`: readers of large files, each one or several units; `RecordFileReader`: of files of records;
`FolderReader`: of many small files.

Notable:
- Paths in units and in the ids of documents are relative to the corpus: where it is mounted changes
  nothing.
- A unit of small files is a run of one folder's files in the order of their names, so that a plan
  stays short. That they are still the same is seen from their sizes and times together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from datatrove.data import Document

from datamodules.items import BadItemError
from datamodules.prepare.readers.base import BadSample, Reader, WorkUnit
from datamodules.prepare.readers.columns import Column, Records
from datamodules.prepare.readers.files import LOOP, FileTree, Folder, changed, open_planned, relative_path
from datamodules.prepare.readers.limits import MIB, Limits

UNIT_BYTES = 64 * MIB
"""Default size of a unit: minutes of work, and few enough of them."""

_FILES_PER_UNIT = 4096


class FileReader(Reader):
    """Reads files one by one.

    Args:
        path: a file, or a folder of files at any depth.
        patterns: which files of the folder.
        limits: of a document and of the growth of compressed files.
    """

    def __init__(self, path: str | Path, patterns: Sequence[str], limits: Limits) -> None:
        self.tree = FileTree(path, patterns)
        self.limits = limits

    def plan(self) -> Iterator[WorkUnit]:
        for folder in self.tree.folders():
            for name in folder.names:
                stamp = self.tree.stamp(folder.path, [name])
                whole = WorkUnit(folder.relative(name), 0, -1, stamp.size, stamp.modified)
                yield from self.divide(whole) if stamp.size else (whole,)
            yield from _loops(folder)

    def divide(self, whole: WorkUnit) -> Iterator[WorkUnit]:
        """The units of one file that is not empty; here one.

        Args:
            whole: the file.
        """
        yield whole

    def read(self, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        path = self.tree.base / unit.path
        try:
            with open_planned(path, unit) as file:
                yield from self.documents(file, unit, source)
        except BadItemError as error:
            yield BadSample(f"{source}: {unit.path}", error.kind, error.message)

    @abstractmethod
    def documents(self, file: BinaryIO, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        """Read one unit.

        Args:
            file: opened, at its beginning.
            unit: of this file.
            source: name of the source.
        Raises:
            BadItemError: if nothing of the unit can be read from here on.
        """


class RecordFileReader(FileReader):
    """Reads files of records, each one document.

    Args:
        path: a file, or a folder of files at any depth.
        columns: keys of flat records, in reading order; None: `items` where a record has it, else "text".
        root: folder that media paths are relative to, and must stay in; None: that of the file.
        patterns: which files of the folder.
        limits: of a document and of the growth of compressed files.
        unit_bytes: size of a unit.
    Raises:
        ValueError: if `unit_bytes` is not positive, or `columns` is empty.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[Column] | None,
        root: str | Path | None,
        patterns: Sequence[str],
        limits: Limits,
        unit_bytes: int,
    ) -> None:
        super().__init__(path, patterns, limits)
        if unit_bytes < 1:
            raise ValueError(f"unit_bytes is {unit_bytes}, it must be at least 1")
        self.root = None if root is None else Path(root)
        self.columns = columns
        self._records = Records(columns, limits)
        self._unit_bytes = unit_bytes


class FolderReader(Reader):
    """Reads folders of small files, where one file or a few of one stem are a document.

    Args:
        path: a folder of files at any depth, or one file.
        patterns: which files of the folder.
        limits: of a document.
        unit_bytes: size of a unit.
    """

    def __init__(self, path: str | Path, patterns: Sequence[str], limits: Limits, unit_bytes: int) -> None:
        if unit_bytes < 1:
            raise ValueError(f"unit_bytes is {unit_bytes}, it must be at least 1")
        self.tree = FileTree(path, patterns)
        self.limits = limits
        self._unit_bytes = unit_bytes

    @abstractmethod
    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Which files of a folder belong together, each group one document; in a fixed order."""

    @abstractmethod
    def document(self, folder: Path, names: Sequence[str], document_id: str, source: str) -> Document:
        """Read one document.

        Args:
            folder: that it lies in.
            names: of its files.
            document_id: for the document.
            source: name of the source.
        Raises:
            BadItemError: if it cannot be used.
        """

    def name_of(self, group: Sequence[str]) -> str:
        """What a document is called within its folder."""
        return group[0]

    def plan(self) -> Iterator[WorkUnit]:
        for folder in self.tree.folders():
            start = size = modified = 0
            groups = self.groups(folder.names)
            for number, group in enumerate(groups, 1):
                stamp = self.tree.stamp(folder.path, group)
                size, modified = size + stamp.size, max(modified, stamp.modified)
                if size >= self._unit_bytes or number - start == _FILES_PER_UNIT or number == len(groups):
                    yield WorkUnit(folder.path, start, number, size, modified)
                    start, size, modified = number, 0, 0
            yield from _loops(folder)

    def read(self, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        folder = self.tree.base / unit.path
        if unit.stop == -1:
            yield BadSample(f"{source}: {unit.path}", "special file", LOOP)
            return
        try:
            groups = self.groups(self.tree.names(unit.path))[unit.start : unit.stop]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise changed(folder) from error
        stamp = self.tree.stamp(unit.path, [name for group in groups for name in group])
        if (stamp.size, stamp.modified) != (unit.size, unit.modified):
            raise changed(folder)
        for group in groups:
            name = self.name_of(group)
            place = f"{source}: {relative_path(unit.path, name)}"
            try:
                yield self.document(folder, group, place, source)
            except BadItemError as error:
                yield BadSample(place, error.kind, error.message)


def _loops(folder: Folder) -> Iterator[WorkUnit]:
    """Links that are not followed, as units of their own: reading names them."""
    for name in folder.loops:
        yield WorkUnit(folder.relative(name), 0, -1, 0)
