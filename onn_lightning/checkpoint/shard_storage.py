"""`ShardWriter` and `ShardReader`: sharded checkpoints for torch.distributed.checkpoint.

Notable:
- torch plans who writes and who reads which part of which tensor, over any numbers of ranks and any sharding;
  these say how a part is stored. Its own storage keeps the plan as a pickle, and reading that runs whatever
  is in it; ours is safetensors and JSON (`shard_index.py`).
- A checkpoint is written to a hidden folder beside; rank 0 writes the index after all ranks have flushed
  their files, and gives the folder its name (`folders.py`): a kill at any moment leaves the one of before.
- If a rank fails, torch tells all ranks, and all of them raise the same error.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from datamodules.prepared.durable import write_durably
from onn_lightning.checkpoint.folders import discard_partial, give_name, hidden
from onn_lightning.checkpoint.shard_index import (
    INDEX,
    PLAIN_DATA,
    Part,
    ShardIndex,
    StoredTensor,
    checksum,
)
from onn_lightning.checkpoint.stored_tensors import StoredTensors
from onn_lightning.checkpoint.tensor_stream import DTYPES, TORCH_DTYPES, write_tensors
from onn_lightning.checkpoint.writing import write


class ShardWriter(StorageWriter):
    """Writes one sharded checkpoint.

    Args:
        path: the folder that it shall be; on a file system that all ranks see.
        plain: plain data beside the tensors; that of rank 0 is written.
        tied: further names of tensors, as in `ShardIndex`.
        stop: set by another thread to have the writing given up.
    """

    def __init__(
        self, path: Path, plain: Mapping[str, Any], tied: Mapping[str, str], stop: threading.Event
    ) -> None:
        self.path, self._plain, self._tied, self._stop = path, plain, tied, stop
        self._beside = hidden(path)
        self._rank = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to another."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """The folder is given to the constructor."""
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take the rank."""
        self._rank = kwargs["rank"]

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make room (rank 0, while the others wait): what a killed run left is removed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        discard_partial(self.path.parent)
        self._beside.mkdir()
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's parts to its file, and flush it."""
        items = [item for item in plan.items if math.prod(_box(item)[1])]  # a rank may hold no row
        results: list[WriteResult] = []
        if items:
            by_name = {item.index.fqn: item for item in items}
            if len(by_name) != len(items):
                raise ValueError(f"a rank holds several parts of one tensor: {self.path}")
            file = f"shard-{self._rank:05}.safetensors"
            with open(self._beside / file, "wb") as stream:
                checksums = write_tensors(
                    stream,
                    {name: (_data(item).properties.dtype, _box(item)[1]) for name, item in by_name.items()},
                    lambda name: self._next(planner, by_name[name]),
                )
                stream.flush()
                os.fsync(stream.fileno())
            results = [
                WriteResult(item.index, 0, Part(file, *_box(item), checksums[name]))
                for name, item in by_name.items()
            ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _next(self, planner: SavePlanner, item: WriteItem) -> Tensor:
        if self._stop.is_set():
            raise KeyboardInterrupt
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        return tensor

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the rest and give the folder its name (rank 0, when all ranks have written)."""
        parts: dict[str, list[Part]] = {}
        for result in (result for of_rank in results for result in of_rank):
            parts.setdefault(result.index.fqn, []).append(result.storage_data)
        tensors = {
            name: StoredTensor(
                DTYPES[stored.properties.dtype],
                tuple(stored.size),
                tuple(sorted(parts.get(name, ()), key=lambda part: part.offsets)),
            )
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        write(self._plain, self._beside / PLAIN_DATA, self._stop)
        index = ShardIndex(tensors, self._tied, checksum(self._beside / PLAIN_DATA))
        write_durably(self._beside / INDEX, index.to_json())
        give_name(self._beside, self.path)

    def discard(self) -> None:
        """Remove what was written of a checkpoint that failed."""
        shutil.rmtree(self._beside, ignore_errors=True)


class ShardReader(StorageReader):
    """Reads, of stored tensors, the parts that each rank needs.

    Args:
        tensors: those that can be read.
    """

    def __init__(self, tensors: StoredTensors) -> None:
        self._tensors = tensors

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one reading to another."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """The tensors are given to the constructor."""
        return False

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The tensors and their parts, for torch's planner."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=TORCH_DTYPES[tensor.dtype]),
                    torch.Size(tensor.shape),
                    [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in tensor.parts],
                )
                for name, tensor in self._tensors.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what this rank needs, and no more."""
        for item in plan.items:
            stored = item.storage_index
            target = planner.resolve_tensor(item).detach()
            target.copy_(
                self._tensors.read_box(
                    stored.fqn, tuple(stored.offset or ()), item.storage_offsets, item.lengths
                )
            )
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def _data(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None  # nothing but tensors is given to torch to be written
    return item.tensor_data


def _box(item: WriteItem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and sizes of the part that is to be written."""
    chunk = _data(item).chunk
    return tuple(chunk.offsets), tuple(chunk.sizes)
