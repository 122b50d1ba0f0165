"""Reading a checkpoint of any form: nothing in it is executed, and no flipped byte goes unnoticed.

Notable:
- `weights_only=True`, always, without a fall-back: plain data and tensors, nothing else.
- torch writes a checksum of every tensor's bytes and of the plain data (the CRC-32 of zip archives) and does
  not look at it when it loads; here it is compared, and the tensor is named. Older files are covered too.
- A file that is mapped is not compared: its numbers are not read.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onn_lightning.checkpoint.complete import TENSORS, Damage, damage_in, is_exported


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used: the message names the file, the reason and the remedy."""


def load(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What a checkpoint of any kind holds, compared with its checksums.

    Args:
        path: its file; the folder of a sharded or an exported one.
        map_location: device to load to; a sharded one is put together on the CPU.
        mmap: leave the numbers of tensors in the file until they are used, not compared; to the CPU only.
    Raises:
        CheckpointError: if it is missing, damaged, or holds more than plain data and tensors.
    """
    if Path(path).is_dir():
        from onn_lightning.checkpoint import exported, sharded  # they use the functions of this module

        folder = Path(path)
        return exported.load(folder) if is_exported(folder) else sharded.load(folder, mmap)
    return load_file(path, map_location, mmap)


def load_file(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What a checkpoint file of any kind holds, compared with its checksums.

    Args:
        path: its file.
        map_location: device to load to.
        mmap: leave the numbers of tensors in the file until they are used, not compared; to the CPU only.
    Raises:
        CheckpointError: if the file is missing, damaged, or holds more than plain data and tensors.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint; training writes them to <run>/checkpoints/")
    try:
        if mmap:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=True)
        with open(path, "rb") as file:  # one handle: the file may be replaced meanwhile
            content = torch.load(file, map_location=map_location, weights_only=True)
            damage = damage_in(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not loaded, it holds more than tensors and plain data or is damaged "
            f"({first_line(error)}); take an intact checkpoint of `onn fit`"
        ) from error
    except Exception as error:  # a damaged pickle can make its reader fail in any way
        raise CheckpointError(
            f"{path}: unreadable ({first_line(error)}); it may be truncated: take an older checkpoint"
        ) from error
    if damage is not None:
        raise _damaged(path, content, damage)
    return content


def require_intact(path: str | Path) -> None:
    """Compare a checkpoint with its checksums.

    Args:
        path: its file; the folder of a sharded one.
    Raises:
        CheckpointError: as `load`.
    """
    if Path(path).is_dir():
        from onn_lightning.checkpoint import sharded  # which uses the functions of this module

        sharded.require_intact(Path(path))
        return
    content = load_file(path, mmap=True)
    with open(path, "rb") as file:
        damage = damage_in(file)
    if damage is not None:
        raise _damaged(path, content, damage)


def _damaged(path: str | Path, content: Any, damage: Damage) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged, {_where(content, damage)} not what was written (checksum); take an older "
        "checkpoint, as `onn fit --resume` does by itself"
    )


def first_line(error: Exception) -> str:
    """An error of another library, for a message of one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _where(content: Any, damage: Damage) -> str:
    """The damaged part in words: torch numbers the records of tensors in the order in which it meets them."""
    if damage.record == "data.pkl":
        return "its plain data is"
    names: dict[int, str] = {}
    for name, tensor in _tensors(content, ""):
        if tensor.layout == torch.strided:
            names.setdefault(tensor.untyped_storage()._cdata, name)
    number = damage.record.removeprefix(TENSORS)
    if number.isdecimal() and len(names) == damage.num_tensors:
        return f"the tensor {list(names.values())[int(number)]} is"
    return f"its record '{damage.record}' is"


def _tensors(node: Any, way: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield way, node
    elif isinstance(node, Mapping | list | tuple):
        entries = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in entries:
            yield from _tensors(value, f"{way}.{key}" if way else str(key))
