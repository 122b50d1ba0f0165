"""Which checkpoints of a run folder are complete, told without reading them.

Notable: a checkpoint counts only once it is complete; a torn `last.ckpt` is passed over in favour of
the newest one that is whole. Standard library only: whoever looks into run folders need not load torch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, in the run folder."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, None where it has none.

    Args:
        folder: the run folder.
    """
    found = (folder / CHECKPOINTS).glob("*.ckpt")
    complete = [path for path in found if is_complete(path)]
    # last.ckpt is written right after the numbered checkpoint of the same step: later name breaks the tie
    return max(complete, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    if path.is_dir():  # sharded: its index is written last
        return (path / ".metadata").is_file()
    return zipfile.is_zipfile(path)  # torch writes zip files, whose directory stands at the end
