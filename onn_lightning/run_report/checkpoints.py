"""What the checkpoints of a run say, without loading their weights.

Notable:
- Read by `checkpoint.description.read` alone, and mapped: shapes and plain data come from the file, the
  numbers of its tensors stay on disk. Nothing in it is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onn_lightning.checkpoint.complete import CHECKPOINTS, newest_checkpoint


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk.

    Args:
        name: of the file or folder.
        num_bytes: on disk.
        written: when, seconds since 1970.
    """

    name: str
    num_bytes: int
    written: float


@dataclass(frozen=True)
class Reshaped:
    """One growth or pruning.

    Args:
        step: optimizer step at which it was done.
        what: one line.
    """

    step: int
    what: str


@dataclass(frozen=True)
class Described:
    """What a checkpoint says of the run.

    Args:
        name: of its file.
        step: optimizer steps.
        trunk: the tower's shape, by field, in words.
        weights: numbers in all its weight tensors; a table that is shared counts once.
        reshaped: growths and prunings.
        documents: in each training source, in words, where the place in the data is known.
        weights_now: mixture weight of each training source.
        tokens_read: of each training source, about; what waits in a buffer is in it.
    """

    name: str
    step: int
    trunk: Mapping[str, str]
    weights: int
    reshaped: tuple[Reshaped, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)
    weights_now: Mapping[str, float] = field(default_factory=dict)
    tokens_read: Mapping[str, float] = field(default_factory=dict)


def list_checkpoints(run_folder: Path) -> list[CheckpointFile]:
    """All checkpoints of a run, the newest last; what is a link to one of them is not listed."""
    files = []
    for path in (run_folder / CHECKPOINTS).glob("*.ckpt"):
        if path.is_symlink() and path.resolve().parent == path.parent.resolve():
            continue
        try:
            parts = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
            written = path.stat().st_mtime
            files.append(CheckpointFile(path.name, sum(part.stat().st_size for part in parts), written))
        except OSError:  # taken away by the run just now
            continue
    return sorted(files, key=lambda file: (file.written, file.name))


def describe_newest(run_folder: Path) -> Described | None:
    """What the newest complete checkpoint says; None where there is none.

    Raises:
        CheckpointError: if it cannot be read.
    """
    from onn_lightning.checkpoint import description  # imports torch
    from onn_lightning.checkpoint.sharded import memory_of, outline

    newest = newest_checkpoint(run_folder)
    if newest is None:
        return None
    checkpoint = description.read(newest, mmap=True)
    weights = outline(checkpoint["state_dict"])
    documents, weights_now, tokens_read = _place_in_data(checkpoint)
    try:
        return Described(
            name=newest.name,
            step=int(checkpoint.get("global_step", 0)),
            trunk={str(key): str(value) for key, value in checkpoint[description.KEY]["trunk"].items()},
            weights=sum({memory_of(tensor): tensor.numel() for tensor in weights.values()}.values()),
            reshaped=tuple(
                Reshaped(int(entry["step"]), str(entry["what"])) for entry in description.history(checkpoint)
            ),
            documents=documents,
            weights_now=weights_now,
            tokens_read=tokens_read,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise description.CheckpointError(f"{newest}: its description cannot be used ({error!r})") from error


def _place_in_data(
    checkpoint: Mapping[str, Any],
) -> tuple[dict[str, str], dict[str, float], dict[str, float]]:
    """Documents, weights and tokens by source; empty where the data has no place of our kind."""
    try:
        state = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        documents = {str(name): str(value) for name, value in state["identity"]["documents"].items()}
        weights = {str(name): float(value) for name, value in state["weights"]["current"].items()}
        tokens = dict.fromkeys(documents, 0.0)
        for place in state["places"]:
            for (name, source), weight in zip(place["sources"].items(), place["weights"], strict=True):
                tokens[name] += float(source["served"]) * float(weight)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return {}, {}, {}
    return documents, weights, tokens
