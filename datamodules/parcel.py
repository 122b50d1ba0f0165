"""How a batch travels from a loader worker to the main process: in one piece of shared memory.

Notable:
- Sent by itself, every tensor of a batch would be a file descriptor of its own, fetched over a connection of
  its own: up to eighteen a batch, which is slow and, with many workers, more than a process may have open.
- The tensors are copied straight into shared memory, once, and are views of it on the other side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from onn_lightning.batch import Batch

_ALIGNMENT = 64  # bytes; a cache line


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the buffer, in bytes, and what it is."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def view(self, buffer: Tensor) -> Tensor:
        end = self.offset + math.prod(self.shape) * self.dtype.itemsize
        return buffer[self.offset : end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Parcel:
    """A batch without its tensors, and one tensor that holds them all.

    Args:
        frame: the batch, with the place of each tensor instead of the tensor.
        buffer: [bytes] uint8 in shared memory.
    """

    frame: Batch
    buffer: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Parcel:
        """Copy a batch into shared memory."""
        tensors: list[tuple[Tensor, _Place]] = []
        size = 0

        def place(tensor: Tensor) -> Tensor:
            nonlocal size
            tensors.append((tensor, _Place(size, tuple(tensor.shape), tensor.dtype)))
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            return cast(Tensor, tensors[-1][1])

        frame = batch.map(place)
        shared = torch.UntypedStorage._new_shared(size)
        buffer = torch.empty(0, dtype=torch.uint8).set_(shared)  # type: ignore[call-overload]
        for tensor, at in tensors:
            at.view(buffer).copy_(tensor)
        return cls(frame, buffer)

    def batch(self) -> Batch:
        """The batch again; its tensors are views of the buffer."""
        return self.frame.map(lambda at: cast(_Place, at).view(self.buffer))
