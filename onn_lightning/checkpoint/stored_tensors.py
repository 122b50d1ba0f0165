"""`StoredTensors`: tensors of a checkpoint of either form, of which any box can be read.

Notable: files are mapped; what is not asked for is not read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onn_lightning.checkpoint.reading import CheckpointError
from onn_lightning.checkpoint.shard_index import Part, ShardIndex, StoredTensor
from onn_lightning.checkpoint.tensor_stream import DTYPES, TORCH_DTYPES


class StoredTensors(ABC):
    """Tensors by name.

    Args:
        tensors: what is stored.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self.tensors = tensors

    @abstractmethod
    def read_box(
        self, name: str, part: tuple[int, ...], offsets: Sequence[int], sizes: Sequence[int]
    ) -> Tensor:
        """Read a box out of one part of a tensor.

        Args:
            name: the tensor's.
            part: where the part begins in the tensor.
            offsets: where the box begins in the part.
            sizes: shape of the box.
        """


class FolderTensors(StoredTensors):
    """Those of a sharded checkpoint, tied ones under all of their names.

    Args:
        folder: the checkpoint.
        index: what it holds.
    """

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        super().__init__({**index.tensors, **{name: index.tensors[one] for name, one in index.tied.items()}})
        self._folder, self._tied = folder, index.tied
        self._files: dict[str, Any] = {}

    def read_box(
        self, name: str, part: tuple[int, ...], offsets: Sequence[int], sizes: Sequence[int]
    ) -> Tensor:
        """See `StoredTensors.read_box`.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        name = self._tied.get(name, name)
        file = next(stored.file for stored in self.tensors[name].parts if stored.offsets == part)
        try:
            if file not in self._files:
                self._files[file] = safe_open(self._folder / file, framework="pt")
            if not part:  # a number has no slices
                return self._files[file].get_tensor(name)
            return self._files[file].get_slice(name)[_slices(offsets, sizes)]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self._folder}: {file} cannot be read ({error}); take an older checkpoint"
            ) from error

    def read(self, name: str) -> Tensor:
        """Put a whole tensor together."""
        stored = self.tensors[name]
        whole = torch.empty(stored.shape, dtype=TORCH_DTYPES[stored.dtype])
        for part in stored.parts:
            box = self.read_box(name, part.offsets, [0] * len(part.sizes), part.sizes)
            whole[_slices(part.offsets, part.sizes)] = box
        return whole


class MappedTensors(StoredTensors):
    """Those of a checkpoint in one file, which is mapped.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._mapped = tensors
        super().__init__({name: _as_one_part(tensor) for name, tensor in tensors.items()})

    def read_box(
        self, name: str, part: tuple[int, ...], offsets: Sequence[int], sizes: Sequence[int]
    ) -> Tensor:
        """See `StoredTensors.read_box`."""
        return self._mapped[name][_slices(offsets, sizes)]


def _as_one_part(tensor: Tensor) -> StoredTensor:
    shape = tuple(tensor.shape)
    return StoredTensor(DTYPES[tensor.dtype], shape, (Part("", (0,) * len(shape), shape, 0),))


def _slices(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
