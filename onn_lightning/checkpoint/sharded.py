"""A sharded checkpoint as the same dictionary that a checkpoint in one file is, and the way there.

Notable:
- The tensors of "state_dict" and "optimizer_states" are stored by rank; everything else is plain data.
- Tied tensors are stored once.
- Whoever reads checkpoints (`reading.load`) needs not know which form one has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from onn_lightning.checkpoint.reading import CheckpointError, load_file
from onn_lightning.checkpoint.shard_index import (
    INDEX,
    PLAIN_DATA,
    ShardIndex,
    damage_in_folder,
    read_index,
)
from onn_lightning.checkpoint.snapshot import snapshot
from onn_lightning.checkpoint.stored_tensors import FolderTensors
from onn_lightning.checkpoint.tensor_stream import TORCH_DTYPES

WEIGHTS, OPTIMIZERS = "state_dict", "optimizer_states"


@dataclass(frozen=True)
class Divided:
    """A checkpoint, its tensors apart.

    Args:
        tensors: of weights and optimizers, by their places: "state_dict.<name>" and
            "optimizer_states.<optimizer>.state.<parameter>.<key>".
        tied: further places of the same tensors.
        plain: the checkpoint without them.
    """

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    plain: dict[str, Any]

    def copied(self) -> Divided:
        """A copy in CPU memory, of sharded tensors this rank's parts, which no later step changes."""
        return Divided(snapshot(self.tensors), self.tied, snapshot(self.plain))


def divide(checkpoint: Mapping[str, Any]) -> Divided:
    """Take the tensors of weights and optimizers out of a checkpoint, which stays as it is.

    Args:
        checkpoint: as Lightning's trainer makes it.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    places: dict[tuple[Any, ...], str] = {}
    plain = dict(checkpoint) | {WEIGHTS: {}}
    if OPTIMIZERS in checkpoint:
        plain[OPTIMIZERS] = [{**state, "state": {}} for state in checkpoint[OPTIMIZERS]]
    for place, value in _entries(checkpoint):
        if not isinstance(value, Tensor):
            _put(plain, place, value)
        elif (same := memory_of(value)) in places:
            tied[".".join(place)] = places[same]
        else:
            places[same] = ".".join(place)
            tensors[".".join(place)] = value
    return Divided(tensors, tied, plain)


def tensors_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's weights and optimizers by their places, tied ones under all of them."""
    return {".".join(place): value for place, value in _entries(checkpoint) if isinstance(value, Tensor)}


def load(folder: Path, mmap: bool = False) -> dict[str, Any]:
    """What a sharded checkpoint holds, put together on the CPU and compared with its checksums.

    Args:
        folder: the checkpoint.
        mmap: put each tensor together only when it is asked for, compared with nothing.
    Raises:
        CheckpointError: if it is incomplete, damaged, or holds more than plain data and tensors.
    """
    index = open_index(folder)
    if not mmap:
        require_intact(folder)
    checkpoint = load_plain(folder)
    stored = FolderTensors(folder, index)
    read: dict[str, Tensor] = {} if mmap else {place: stored.read(place) for place in index.tensors}
    for place in (*index.tensors, *index.tied):
        origin = index.tied.get(place, place)
        _put(checkpoint, _split(place), _Later(origin) if mmap else read[origin])
    if mmap:
        checkpoint[WEIGHTS] = TensorsOnDemand(checkpoint[WEIGHTS], stored)
        for state in checkpoint.get(OPTIMIZERS, ()):
            for parameter, entries in state["state"].items():
                state["state"][parameter] = TensorsOnDemand(entries, stored)
    return checkpoint


def require_intact(folder: Path, reader: int = 0, readers: int = 1) -> None:
    """Compare a sharded checkpoint with its checksums.

    Args:
        folder: the checkpoint.
        reader: which of several readers this one is; each compares some of the files.
        readers: how many share the work.
    Raises:
        CheckpointError: if something is not what was written.
    """
    open_index(folder)
    if (damage := damage_in_folder(folder, reader, readers)) is not None:
        raise _damaged(folder, damage)


def load_plain(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint without its tensors.

    Raises:
        CheckpointError: if it is damaged or holds more than plain data.
    """
    plain = load_file(folder / PLAIN_DATA)
    if not isinstance(plain, dict) or not isinstance(plain.get(WEIGHTS), dict):
        raise CheckpointError(f"{folder}: its {PLAIN_DATA} is not that of a checkpoint")
    return plain


def open_index(folder: Path) -> ShardIndex:
    """The index of a sharded checkpoint.

    Raises:
        CheckpointError: if the folder is no complete checkpoint of ours.
    """
    try:
        return read_index(folder)
    except FileNotFoundError as error:
        hint = "training writes complete ones to <run>/checkpoints/"
        if (folder / ".metadata").exists():
            hint = (
                "it was written by Lightning's own strategy, whose index is a pickle, which is not "
                "read since that can run code: save with onn_lightning.distributed.ShardedStrategy"
            )
        raise CheckpointError(
            f"{folder}: no such checkpoint, it is a folder without {INDEX}; {hint}"
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, str(error)) from error


class TensorsOnDemand(Mapping[str, Any]):
    """A state dictionary whose tensors are read when they are asked for, and not kept.

    Args:
        entries: by name; what is to be read, or values.
        stored: where they are.
    """

    def __init__(self, entries: Mapping[str, Any], stored: FolderTensors) -> None:
        self._entries, self._stored = entries, stored

    def __getitem__(self, name: str) -> Any:
        """Read the tensor."""
        entry = self._entries[name]
        return self._stored.read(entry.place) if isinstance(entry, _Later) else entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def outline(self) -> dict[str, Tensor]:
        """The tensors on the meta device, tied ones as one; nothing is read."""
        places = {name: entry.place for name, entry in self._entries.items() if isinstance(entry, _Later)}
        on_meta = {
            place: torch.empty(stored.shape, dtype=TORCH_DTYPES[stored.dtype], device="meta")
            for place, stored in self._stored.tensors.items()
            if place in places.values()
        }
        return {name: on_meta[place] for name, place in places.items()}


@dataclass(frozen=True)
class _Later:
    place: str


def outline(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Types and shapes of a checkpoint's weights, of either form, without reading them.

    Args:
        weights: "state_dict" of a checkpoint that was read with `mmap`.
    Returns:
        tensors whose numbers are of no use; of tied ones `memory_of` is the same.
    """
    return weights.outline() if isinstance(weights, TensorsOnDemand) else weights


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one: state dictionaries hold a new view under every name."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    # the storage itself, not its address: a rank may hold no row of several tensors, all at address 0
    return local.untyped_storage()._cdata, local.storage_offset(), tensor.shape, tensor.dtype


def optimizer_places(places: Iterable[str], optimizer: int) -> dict[str, tuple[int, str]]:
    """The places of an optimizer's tensors, each with its parameter's number and its key.

    Args:
        places: of all tensors of a checkpoint.
        optimizer: its number.
    """
    ways = {place: _split(place) for place in places if place.startswith(f"{OPTIMIZERS}.{optimizer}.")}
    return {place: (int(way[3]), way[4]) for place, way in ways.items()}


def _entries(checkpoint: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in checkpoint[WEIGHTS].items():
        yield (WEIGHTS, name), value
    for number, optimizer in enumerate(checkpoint.get(OPTIMIZERS, ())):
        for parameter, state in optimizer["state"].items():
            for key, value in state.items():
                yield (OPTIMIZERS, str(number), "state", str(parameter), key), value


def _split(place: str) -> tuple[str, ...]:
    """The way to a tensor; names of weights have dots of their own."""
    return tuple(place.split(".", 1) if place.startswith(f"{WEIGHTS}.") else place.split(".", 4))


def _put(checkpoint: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    if place[0] == WEIGHTS:
        checkpoint[WEIGHTS][place[1]] = value
    else:
        _, number, _, parameter, key = place
        checkpoint[OPTIMIZERS][int(number)]["state"].setdefault(int(parameter), {})[key] = value


def _damaged(folder: Path, damage: str) -> CheckpointError:
    """The error for a checkpoint that is not what was written."""
    return CheckpointError(
        f"{folder}: damaged, {damage}; take an older checkpoint, as `onn fit --resume` does by itself"
    )
