"""Arrays kept in the user's cache folder: written whole or not at all, never pickled.

Notable:
- A file appears under its final name complete (written beside, flushed, renamed), so processes that
  build the same thing at once overwrite each other with the same bytes and readers never see half.
- Every array is checked against its CRC when read; a damaged file counts as absent.
- Where nothing can be written (a read-only container) there is no cache, and that is all.
- `ONN_CACHE_DIR` moves the folder; otherwise the XDG folder, `~/.cache/onn_lightning`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
logger = logging.getLogger(__name__)


def cached_arrays(name: str, build: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> Arrays:
    """The arrays kept under a name, built and kept if they are not there.

    Args:
        name: file name that says everything the arrays depend on (a digest in it).
        build: makes them.
    """
    path = cache_folder() / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("cannot read %s (%s): building it again", path, error)
    arrays = dict(build())
    try:
        _write(path, arrays)
    except OSError as error:
        logger.info("nothing is cached in %s: %s", path.parent, error)
    return arrays


def cache_folder() -> Path:
    """The folder for derived files, not created yet."""
    if folder := os.environ.get("ONN_CACHE_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "onn_lightning"


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes names for options
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
