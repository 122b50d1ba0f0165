"""The files of a corpus: `FileTree` lists them in a fixed order, `open_planned` opens one of them.

Notable:
- Only regular files are opened: a named pipe or a device would block or never end, a socket cannot be
  read. They are listed all the same, so that whoever reads them names them.
- Symbolic links are followed, but a link to a folder that is read anyway (a loop is one) is not: it is
  listed apart, to be named.
- Hidden files and folders (`.git`, `._x.png`) are no part of a corpus.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from datamodules.items import BadItemError
from datamodules.prepare.readers.base import CorpusChangedError, WorkUnit

TOP = "."
"""Relative path of the corpus's own folder."""

SPECIAL = "it is a pipe, a socket or a device, which is never opened; remove it"
LOOP = "it is a link to a folder that is read anyway; remove it"


@dataclass(frozen=True)
class Stamp:
    """What is compared to see whether files are still the ones that were planned.

    Args:
        size: bytes of all of them.
        modified: the latest change, nanoseconds.
    """

    size: int = 0
    modified: int = 0


@dataclass(frozen=True)
class Folder:
    """One folder of a corpus.

    Args:
        path: relative to the corpus, with "/".
        names: of the files that belong to the corpus, in order.
        loops: names of the links in it that lead to folders which are read anyway.
    """

    path: str
    names: list[str]
    loops: list[str]

    def __post_init__(self) -> None:
        for name in (*self.names, *self.loops):
            _check_name(self.path, name)

    def relative(self, name: str) -> str:
        """Path of a file, relative to the corpus."""
        return relative_path(self.path, name)


class FileTree:
    """A file, or the files below a folder that match a pattern.

    Args:
        path: of the file or folder.
        patterns: of paths relative to the folder, matched from the right as by `PurePath.match`
            ("*.txt" at any depth, "en/*.txt" in folders named en), upper and lower case alike.
    """

    def __init__(self, path: str | Path, patterns: Sequence[str]) -> None:
        self.path = Path(path)
        self._patterns = [pattern.lower() for pattern in patterns]
        self._last: Folder | None = None

    @property
    def base(self) -> Path:
        """Folder that relative paths start from."""
        return self.path if self.path.is_dir() else self.path.parent

    def folders(self) -> Iterator[Folder]:
        """Folders that hold files of the corpus, parents first, each level in the order of names.

        Raises:
            FileNotFoundError: if the corpus is not there.
            PermissionError: if a folder or file may not be read.
            ValueError: if nothing matches, or a name cannot be written down.
        """
        if not self.path.exists():
            raise FileNotFoundError(f"'{self.path}' does not exist: obtain it, or correct `path`")
        if not self.path.is_dir():
            _check_access(self.path)
            yield Folder(TOP, [self.path.name], [])
            return
        empty = True
        trees = [os.path.realpath(self.path)]  # that are read, or have been
        waiting = [TOP]
        while waiting:
            here = waiting.pop()
            names, below, links = self._list(here)
            followed = [name for name in links if _is_new_tree(self.path / here / name, trees)]
            folder = Folder(here, names, [name for name in links if name not in followed])
            for name in names:
                _check_access(self.path / here / name)
            waiting.extend(folder.relative(name) for name in sorted(below + followed, reverse=True))
            if folder.names or folder.loops:
                empty = False
                yield folder
        if empty:
            raise ValueError(
                f"no file in '{self.path}' matches {self._patterns}: correct `path` or `patterns`"
            )

    def names(self, folder: str) -> list[str]:
        """The files of one folder, as `folders` lists them; the last answer is kept."""
        if self._last is None or self._last.path != folder:
            names = self._list(folder)[0] if self.path.is_dir() else [self.path.name]
            self._last = Folder(folder, names, [])
        return self._last.names

    def stamp(self, folder: str, names: Sequence[str]) -> Stamp:
        """Of some files of a folder together; special and missing ones count as nothing."""
        size = modified = 0
        for name in names:
            try:
                status = os.stat(self.base / folder / name)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                size, modified = size + status.st_size, max(modified, status.st_mtime_ns)
        return Stamp(size, modified)

    def _list(self, here: str) -> tuple[list[str], list[str], list[str]]:
        """Names of (files of the corpus, folders, links to folders) in one folder, sorted."""
        files: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        try:
            with os.scandir(self.path / here) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except PermissionError as error:
            raise _no_access(self.path / here) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _leads_to_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.name)
            else:
                relative = PurePosixPath(relative_path(here, entry.name).lower())
                if any(relative.match(pattern) for pattern in self._patterns):
                    files.append(entry.name)
        return files, folders, links


def relative_path(folder: str, name: str) -> str:
    """Path of a file, relative to the corpus.

    Args:
        folder: relative to the corpus.
        name: within the folder.
    """
    return name if folder == TOP else f"{folder}/{name}"


@contextmanager
def open_planned(path: Path, unit: WorkUnit) -> Iterator[BinaryIO]:
    """Open a file that was planned as one unit or several.

    Args:
        path: of the file.
        unit: of it; where it goes to the end of the file, start and size give the file's size.
    Raises:
        BadItemError: not a regular file, or empty.
        CorpusChangedError: if it is not the file that was planned.
        PermissionError: if it may not be read.
    """
    try:
        file = open_regular(path)
    except BadItemError as error:
        if unit.size or unit.modified:  # it was a regular file then
            raise changed(path) from error
        raise
    with file:
        status = os.fstat(file.fileno())
        resized = unit.stop == -1 and unit.start + unit.size != status.st_size
        if status.st_mtime_ns != unit.modified or resized:
            raise changed(path)
        if status.st_size == 0:
            raise empty_file()
        yield file


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; nothing else is touched.

    Raises:
        BadItemError: if it is a folder, pipe, socket, device, or a link that leads nowhere.
        PermissionError: if it may not be read.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            # Not blocking: between the two calls a pipe may have taken the file's place.
            return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except PermissionError as error:
        raise _no_access(path) from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise BadItemError("special file", "it is a link that leads nowhere; mend it") from error
        if error.errno == errno.ENXIO:  # a pipe or socket, now
            raise BadItemError("special file", SPECIAL) from error
        raise
    raise BadItemError("special file", LOOP if path.is_dir() else SPECIAL)


def changed(path: Path) -> CorpusChangedError:
    """The error for a file or folder that is not as it was planned."""
    return CorpusChangedError(
        f"'{path}' has changed or vanished since the preparation was planned: restore it, or start the "
        "preparation anew with --overwrite"
    )


def empty_file() -> BadItemError:
    """The error for a file of no bytes."""
    return BadItemError("empty file", "it is empty (0 bytes); fetch it again or remove it")


def _no_access(path: Path) -> PermissionError:
    return PermissionError(f"'{path}' may not be read: change its permissions, or move it out of the corpus")


def _check_access(path: Path) -> None:
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError as error:
        raise _no_access(path) from error
    except OSError:
        return  # a link that leads nowhere: whoever reads it names it
    if regular and not os.access(path, os.R_OK):
        raise _no_access(path)


def _check_name(folder: str, name: str) -> None:
    path = relative_path(folder, name)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ValueError(f"the name of '{shown}' is not valid UTF-8: rename it") from error


def _is_new_tree(link: Path, trees: list[str]) -> bool:
    """Whether a folder lies neither in nor around one that is read; it is from now on."""
    target = os.path.realpath(link)
    for tree in trees:
        if os.path.commonpath([target, tree]) in (target, tree):
            return False
    trees.append(target)
    return True


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
