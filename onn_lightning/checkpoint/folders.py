"""Folders that are complete under their names, or not there at all.

Notable:
- A folder is made under a hidden name, flushed, and renamed. Where it replaces another, that one stays
  visible under `<name>-replaced`, as what it is, until the new one has its name: no file system swaps two
  folders everywhere. A kill in between leaves the older one to be found.
- A folder is removed by giving it a hidden name first: nobody sees half of one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from datamodules.prepared.durable import PARTIAL_SUFFIX, flush_folder


def hidden(path: Path) -> Path:
    """Where a folder is made, or removed."""
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def give_name(beside: Path, path: Path) -> None:
    """Flush a finished folder and give it its name; a file or folder of that name is replaced.

    Args:
        beside: the folder, its files flushed; or a file.
        path: its name, in the same folder.
    Raises:
        OSError: if that cannot be done; what was there before is then there under one of its names.
    """
    flush_folder(beside)
    replaced = path.with_name(f"{path.stem}-replaced{path.suffix}")
    if path.exists():
        remove(replaced)
        path.rename(replaced)
    beside.rename(path)
    flush_folder(path.parent)
    remove(replaced)


def remove(path: Path) -> None:
    """Remove a file or a folder; one that is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        beside = hidden(path)
        shutil.rmtree(beside, ignore_errors=True)
        path.rename(beside)
        shutil.rmtree(beside)
    else:
        path.unlink(missing_ok=True)


def discard_partial(parent: Path) -> None:
    """Remove the folders that runs left half made, or half removed, when they were killed."""
    for left in parent.glob(f".*{PARTIAL_SUFFIX}"):
        if left.is_dir():
            shutil.rmtree(left)
