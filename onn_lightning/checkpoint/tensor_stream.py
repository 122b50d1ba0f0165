"""Writing a safetensors file one tensor after another, so that only one has to be in memory.

Notable:
- safetensors' own `save_file` wants all tensors at once; the format itself does not: its header holds types
  and shapes, and the numbers follow. What is written here is read by safetensors.
- The CRC-32 of a tensor's bytes is taken while they are written: no byte is read twice.

Source: the format, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import IO

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in safetensors files."""

TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}

_ALIGNMENT = 8


def write_tensors(
    stream: IO[bytes],
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    notes: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Write a safetensors file.

    Args:
        stream: receives it, from where it stands.
        shapes: type and shape of every tensor by name.
        read: gives a tensor by its name, on any device; called when the one before is written.
        notes: the file's own metadata.
    Returns:
        CRC-32 of every tensor's bytes.
    Raises:
        ValueError: if a tensor is not what its entry says.
    """
    header: dict[str, object] = {"__metadata__": dict(notes)} if notes else {}
    end = 0
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))  # the widest first: aligned
    for name in names:
        dtype, shape = shapes[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    checksums = {}
    for name in names:
        tensor = read(name)
        if (tensor.dtype, tuple(tensor.shape)) != shapes[name]:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {shapes[name]}")
        content = bytes_of(tensor)
        checksums[name] = zlib.crc32(content)
        stream.write(content)
    return checksums


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as they stand in a file."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
