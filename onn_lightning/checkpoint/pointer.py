"""`last.ckpt`: a link to the newest checkpoint of a run, moved in one step.

Notable:
- It is moved once its target is complete and on the disk, and before what it pointed to is removed: at any
  moment of a kill it leads to a whole checkpoint.
- The link is relative: a run folder may be moved or copied. No bytes are written twice.
- A file system without symbolic links gets a hard link of a file, and without those a copy.
- In runs of before this was a link, a whole checkpoint stands in its place: a file gives way to the link, a
  folder keeps its content under the name `last-before.ckpt`.
- Standard library only.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from datamodules.prepared.durable import durable_stream, flush_folder

LAST = "last.ckpt"
"""Name of the pointer, in the folder of the checkpoints."""

_log = logging.getLogger(__name__)


def point_to(target: Path) -> None:
    """Let `last.ckpt` in the folder of a checkpoint lead to it.

    Args:
        target: file or folder, complete and flushed.
    Raises:
        OSError: if the folder cannot be written.
    """
    pointer = target.with_name(LAST)
    beside = target.with_name(f".{LAST}.link")
    beside.unlink(missing_ok=True)  # of a process that was killed
    if pointer.is_dir() and not pointer.is_symlink():
        os.replace(pointer, pointer.with_name("last-before.ckpt"))
    try:
        beside.symlink_to(target.name)
    except (OSError, NotImplementedError) as error:
        if target.is_dir():
            _log.warning("%s: this file system has no links (%s): no %s is kept", target, error, LAST)
            return
        _link_or_copy(target, beside)
    os.replace(beside, pointer)
    beside.unlink(missing_ok=True)  # where both were names of one file, nothing was replaced
    flush_folder(target.parent)


def pointed_to(folder: Path) -> Path | None:
    """The checkpoint that the pointer leads to, None where it is no link.

    Args:
        folder: of the checkpoints.
    """
    pointer = folder / LAST
    return folder / os.readlink(pointer) if pointer.is_symlink() else None


def _link_or_copy(target: Path, beside: Path) -> None:
    try:
        os.link(target, beside)
    except OSError:
        with target.open("rb") as source, durable_stream(beside) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
