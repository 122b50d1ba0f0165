"""Checkpoints of a run that goes back: which one it goes back to, what that becomes, what is put aside.

Notable:
- The run goes back with everything - weights, optimizer, schedule, counts, random states - but for its place
  in the data, which is that of the moment: what the run has read since is not read again.
- Written first, put aside afterwards: a run killed in between goes on from what was written last.
- Checkpoints of later steps are not removed. They lie in `rolled_back/` beside the others, where nothing goes
  on from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onn_lightning.checkpoint import description, reading
from onn_lightning.checkpoint.reading import CheckpointError

ASIDE = "rolled_back"
"""Folder of the checkpoints that were put aside, in that of the others."""

_log = logging.getLogger(__name__)


def newest_before(folder: Path, step: int) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint of fewer steps, and what it holds; None where there is none.

    Args:
        folder: of the run's checkpoints, files or sharded ones.
        step: optimizer steps.
    """
    earlier = [(done, path.stat().st_mtime_ns, path) for done, path in _with_steps(folder) if done < step]
    for _, _, path in sorted(earlier, reverse=True):
        try:
            return path, description.read(path)
        except CheckpointError as error:
            _log.warning("%s is passed over: %s", path, error)
    return None


def with_data_place_of(checkpoint: dict[str, Any], later: dict[str, Any], what: str) -> dict[str, Any]:
    """A copy of a checkpoint that goes on with the data where a later one of the same run does.

    Args:
        checkpoint: as `description.read` returns it.
        later: likewise.
        what: one line for its history.
    """
    loop = checkpoint["loops"]["fit_loop"]
    places = later["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    loop = loop | {"state_dict": loop["state_dict"] | {"combined_loader": places}}
    described = checkpoint[description.KEY]
    entry = {"step": int(checkpoint["global_step"]), "what": what, "trunk": described["trunk"]}
    return checkpoint | {
        "loops": checkpoint["loops"] | {"fit_loop": loop},
        description.KEY: described | {"history": [*description.history(checkpoint), entry]},
    }


def put_aside(folder: Path, step: int) -> list[Path]:
    """Move the checkpoints of more steps out of the way.

    Args:
        folder: of the run's checkpoints.
        step: optimizer steps.
    Returns:
        Where they are now.
    """
    aside = folder / ASIDE
    aside.mkdir(exist_ok=True)
    later = [path for done, path in _with_steps(folder) if done > step]
    links = [path for path in folder.glob("*.ckpt") if path.is_symlink()]
    for link in links:
        if link.resolve() in {path.resolve() for path in later}:
            link.unlink()  # leads to one of them
    return [path.replace(aside / path.name) for path in later if not path.is_symlink() and path.exists()]


def _with_steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints of a folder that can be read, by the steps that they hold."""
    for path in folder.glob("*.ckpt"):
        if path.is_symlink():
            continue
        try:
            content = reading.load(path, mmap=True)
            yield int(content["global_step"]), path
        except (CheckpointError, KeyError, TypeError):
            continue
