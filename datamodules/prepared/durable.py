"""`DurableFile`: a file that exists under its name only once it is complete and on the disk.

Notable:
- It is written under a hidden name beside, flushed, renamed, and the folder is flushed: a kill or a
  power cut at any moment leaves the old state or the new one.
- A failure (a full disk) removes what was written so far and says what to do; other files are untouched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PARTIAL_SUFFIX = ".partial"
_BUFFER_BYTES = 1 << 20


class DurableFile:
    """A binary file being written.

    Args:
        path: its final name; the folder must exist.
    Raises:
        OSError: here and in all methods, if the disk is full or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
        with self._explained():
            self._file = open(self._beside, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115  # see `commit`

    @property
    def stream(self) -> IO[bytes]:
        """What is written to."""
        return self._file

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        with self._explained():
            self._file.write(data)

    def commit(self) -> None:
        """Give the file its name."""
        try:
            with self._explained():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._beside, self.path)
                flush_folder(self.path.parent)
        except BaseException:  # an interrupt among them
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):  # what is still in the buffer does not fit on the disk either
            self._file.close()
        self._beside.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write '{self.path}' ({error.strerror}): make room or correct the permissions, "
                "then run the same command again; files that were finished before are intact",
            ) from error


@contextmanager
def durable_stream(path: Path) -> Iterator[IO[bytes]]:
    """A file for a library that writes to one: complete under its name after the block, or not there.

    Raises:
        OSError: as `DurableFile`; of what the library writes, as it said it.
    """
    file = DurableFile(path)
    try:
        yield file.stream
    except BaseException:
        file.discard()
        raise
    file.commit()


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the one that was there.

    Raises:
        OSError: as `DurableFile`.
    """
    file = DurableFile(path)
    try:
        file.write(content)
    except OSError:
        file.discard()
        raise
    file.commit()


def flush_folder(folder: Path) -> None:
    """Have the names of a folder's files on the disk.

    Raises:
        OSError: if it cannot be flushed.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
