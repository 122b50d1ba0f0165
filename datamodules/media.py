"""Opening a media file: one place for the errors that images and sounds have in common.

Notable:
- Every failure is a `BadSampleError` with the item's name and a remedy, so that a loader can skip,
  count and name it.
- Only regular files are opened: a named pipe or a device would block or never end.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onn_lightning.modality import BadSampleError


@contextmanager
def open_media(source: str | Path | bytes, kind: str) -> Iterator[tuple[str, BinaryIO]]:
    """Open a path or bytes for reading.

    Args:
        source: path of a file, or the file's content.
        kind: what the file should hold ("image", "audio"), for messages.
    Yields:
        The item's name for messages, and the seekable binary stream.
    Raises:
        BadSampleError: missing, a folder or another special file, not permitted, or empty.
    """
    if isinstance(source, bytes):
        name = f"{kind} of {len(source)} bytes in memory"
        stream: BinaryIO = io.BytesIO(source)
        size = len(source)
    else:
        name = f"{kind} '{source}'"
        stream, size = _open_regular_file(source, name)
    with stream:
        if size == 0:
            raise BadSampleError(f"{name} is empty (0 bytes): fetch it again or drop the item")
        yield name, stream


def _open_regular_file(source: str | Path, name: str) -> tuple[BinaryIO, int]:
    try:
        status = os.stat(source)
        if stat.S_ISREG(status.st_mode):
            return open(source, "rb"), status.st_size  # the caller's `with` closes it
    except FileNotFoundError as error:
        raise BadSampleError(f"{name} does not exist: correct the path or drop the item") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        raise BadSampleError(
            f"{name} cannot be opened ({error}): correct the path or its permissions, or drop the item"
        ) from error
    raise BadSampleError(f"{name} is a folder, pipe or device: name a regular file or drop the item")
