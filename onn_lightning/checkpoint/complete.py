"""Which checkpoints of a run folder are complete and intact, told without loading them.

Notable:
- A checkpoint counts only once it is complete; a torn one is passed over for the newest that is whole.
- Newest is what was written last. `last.ckpt` may be a link to another one: that one is what is meant, once.
- Complete is told by the end of a file, or by the index of a sharded checkpoint; intact by the checksums
  of all its bytes, which are read once.
- Standard library only: whoever looks into run folders need not load torch.
"""

from __future__ import annotations

import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onn_lightning.checkpoint.pointer import LAST
from onn_lightning.checkpoint.shard_index import INDEX, damage_in_folder

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, in the run folder."""

EXPORTED = "config.json"
"""File that makes a folder one of `onn export`."""

TENSORS = "data/"
"""Beginning of the names of records that hold the bytes of tensors."""

_STEP = re.compile(r"step=(\d+)")
_log = logging.getLogger(__name__)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Damage:
    """The first part of a checkpoint file that is not what was written.

    Args:
        record: its name in the archive: "data.pkl" or "data/<number>".
        num_tensors: records in the archive that hold tensors.
    """

    record: str
    num_tensors: int


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, None where it has none.

    Args:
        folder: the run folder.
    """
    return next(iter(_newest_first(folder)), None)


def newest_intact_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint whose bytes are those that were written, None where there is none.

    Reads the file, and older ones only where it is damaged, which is logged.

    Args:
        folder: the run folder.
    """
    for path in _newest_first(folder):
        if path.is_dir():
            folder_damage = damage_in_folder(path)
            if folder_damage is None:
                return path
            _log.warning("%s is passed over: %s", path, folder_damage)
            continue
        try:
            with path.open("rb") as file:
                damage = damage_in(file)
        except (OSError, zipfile.BadZipFile) as error:
            _log.warning("%s is passed over: it cannot be read (%s)", path, error)
            continue
        if damage is None:
            return path
        _log.warning("%s is passed over: its record '%s' is damaged (checksum)", path, damage.record)
    return None


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    if path.is_dir():  # sharded: its index is written last
        return (path / INDEX).is_file()
    return zipfile.is_zipfile(path)  # torch writes zip files, whose directory stands at the end


def is_exported(path: Path) -> bool:
    """Whether a folder is one that `onn export` wrote."""
    return (path / EXPORTED).is_file()


def damage_in(file: IO[bytes]) -> Damage | None:
    """Compare a checkpoint file with the checksums that it holds.

    Args:
        file: open, at any place.
    Returns:
        None if all is as it was written, and for files of before torch wrote archives.
    Raises:
        zipfile.BadZipFile: if the archive's own directory is damaged.
        OSError: if the file cannot be read.
    """
    file.seek(0)
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        records = {entry: entry.filename.partition("/")[2] for entry in archive.infolist()}
        for entry, record in records.items():
            try:
                with archive.open(entry) as stream:
                    while stream.read(_CHUNK):
                        pass
            except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
                return Damage(record, sum(name.startswith(TENSORS) for name in records.values()))
    return None


def step_in_name(name: str) -> int:
    """The step that a checkpoint's name tells, -1 where it tells none.

    Args:
        name: of its file or folder.
    """
    found = _STEP.search(name)
    return int(found[1]) if found else -1


def _newest_first(folder: Path) -> list[Path]:
    """The complete checkpoints, each once and, where it has one, under its own name."""
    checkpoints = folder / CHECKPOINTS
    target = (checkpoints / LAST).resolve()
    found: dict[Path, Path] = {}
    for path in sorted(checkpoints.glob("*.ckpt"), key=Path.is_symlink):
        found.setdefault(path.resolve(), path)
    aged = []
    for resolved, path in found.items():
        try:
            if is_complete(path):
                # what was copied is of one moment: the pointer, then the steps, tell the order
                age = path.stat().st_mtime_ns, resolved == target, step_in_name(path.name), path.name
                aged.append((age, path))
        except FileNotFoundError:  # taken away by a run that goes on
            continue
    return [path for _, path in sorted(aged, reverse=True)]
