"""`ShardIndex`: what a sharded checkpoint holds and where, and whether its bytes are those that were written.

A sharded checkpoint is a folder:

    step=100.ckpt/
      shard-00000.safetensors   the parts of tensors that rank 0 wrote; one file for every rank
      state.pt                  everything else: callbacks, loops, description (plain data)
      index.json                written last: every tensor's shape, its parts, and their CRC-32

Notable:
- Nothing in it is executed when it is read: safetensors, JSON, and a file that is read with `weights_only`.
- A folder without an index is not complete. The index carries a checksum of itself.
- Standard library only, as `complete.py`: whoever looks into run folders need not load torch.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

INDEX = "index.json"
PLAIN_DATA = "state.pt"
FORMAT = 1

_CHUNK = 1 << 20
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Part:
    """A box of a tensor, in one file under the tensor's name.

    Args:
        file: name of the file.
        offsets: where the box begins, in every dimension of the whole tensor.
        sizes: its shape.
        crc32: checksum of its bytes.
    """

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc32: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and its parts.

    Args:
        dtype: as safetensors names it: "F32", "BF16", ...
        shape: of the whole tensor.
        parts: boxes that together are the tensor, none over another.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ShardIndex:
    """All tensors of a sharded checkpoint.

    Args:
        tensors: by name.
        tied: further names, of tensors that are one with another that is stored.
        plain_crc32: checksum of the file of plain data.
    """

    tensors: Mapping[str, StoredTensor]
    tied: Mapping[str, str]
    plain_crc32: int

    def to_json(self) -> bytes:
        """The content of `index.json`."""
        content = {
            "format": FORMAT,
            "tensors": {name: asdict(tensor) for name, tensor in self.tensors.items()},
            "tied": dict(self.tied),
            "plain_crc32": self.plain_crc32,
        }
        return json.dumps({"crc32": _crc(content), "content": content}).encode()

    @staticmethod
    def from_json(text: bytes) -> ShardIndex:
        """Read the content of `index.json`.

        Raises:
            ValueError: if it is damaged or of another format.
        """
        try:
            whole = json.loads(text)
            content = whole["content"]
            is_intact = whole["crc32"] == _crc(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its {INDEX} is damaged") from error
        if not is_intact:
            raise ValueError(f"its {INDEX} is damaged (checksum)")
        if content["format"] != FORMAT:
            raise ValueError(f"its {INDEX} has format {content['format']}, this version reads {FORMAT}")
        tensors = {name: _stored(tensor) for name, tensor in content["tensors"].items()}
        return ShardIndex(tensors, content["tied"], content["plain_crc32"])


def read_index(folder: Path) -> ShardIndex:
    """The index of a sharded checkpoint.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, of another format, or names files elsewhere.
    """
    index = ShardIndex.from_json((folder / INDEX).read_bytes())
    for tensor in index.tensors.values():
        for part in tensor.parts:
            if Path(part.file).name != part.file:
                raise ValueError(f"its {INDEX} names the file '{part.file}', which is not one in the folder")
    return index


def damage_in_folder(folder: Path, reader: int = 0, readers: int = 1) -> str | None:
    """Compare a sharded checkpoint with its checksums; every file is read once.

    Args:
        folder: the checkpoint.
        reader: which of several readers this one is; each compares some of the files.
        readers: how many share the work.
    Returns:
        What is not as it was written, in words; None if all is.
    """
    try:
        index = read_index(folder)
        if reader == 0 and checksum(folder / PLAIN_DATA) != index.plain_crc32:
            return f"its {PLAIN_DATA} is not what was written (checksum)"
        expected: dict[str, dict[str, tuple[str, Part]]] = {}
        for name, tensor in index.tensors.items():
            for part in tensor.parts:
                expected.setdefault(part.file, {})[name] = (tensor.dtype, part)
        for file_name in sorted(expected)[reader::readers]:
            damage = _damage_in_shard(folder / file_name, expected[file_name])
            if damage is not None:
                return damage
    except OSError as error:
        return f"it cannot be read ({error})"
    except ValueError as error:
        return str(error)
    return None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    with path.open("rb") as file:
        crc = _crc_of(file, 0, os.fstat(file.fileno()).st_size)
    return 0 if crc is None else crc


def _damage_in_shard(path: Path, expected: Mapping[str, tuple[str, Part]]) -> str | None:
    with path.open("rb") as file:
        try:
            ranges = _byte_ranges(file)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"the header of {path.name} is not what was written"
        for name, (dtype, part) in expected.items():
            if ranges.get(name, (None, None))[0] != (dtype, part.sizes):
                return f"the header of {path.name} is not what was written (the tensor {name})"
            start, end = ranges[name][1]
            if _crc_of(file, start, end) != part.crc32:
                return f"the tensor {name} in {path.name} is not what was written (checksum)"
    return None


def _byte_ranges(file: IO[bytes]) -> dict[str, tuple[tuple[str, tuple[int, ...]], tuple[int, int]]]:
    """Type, shape and place of every tensor of a safetensors file."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > os.fstat(file.fileno()).st_size:
        raise ValueError("longer than the file")
    header = json.loads(file.read(length))
    begin = _LENGTH_BYTES + length
    return {
        name: (
            (entry["dtype"], tuple(entry["shape"])),
            (begin + entry["data_offsets"][0], begin + entry["data_offsets"][1]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _crc_of(file: IO[bytes], start: int, end: int) -> int | None:
    """Checksum of some bytes; None where the file ends before them."""
    file.seek(start)
    crc, left = 0, end - start
    while left > 0:
        block = file.read(min(_CHUNK, left))
        if not block:
            return None
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


def _stored(entry: Mapping[str, Any]) -> StoredTensor:
    parts = tuple(
        Part(part["file"], tuple(part["offsets"]), tuple(part["sizes"]), part["crc32"])
        for part in entry["parts"]
    )
    return StoredTensor(entry["dtype"], tuple(entry["shape"]), parts)


def _crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
