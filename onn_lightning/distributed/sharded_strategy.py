"""`ShardedStrategy`: ModelParallelStrategy whose checkpoints are complete or absent, and load anywhere.

Notable:
- Lightning's own writes a sharded checkpoint in place, with an index that is a pickle; here it is a folder
  that gets its name when all of it is on the disk (`checkpoint.shard_storage`), and that holds no code.
- Loading takes sharded checkpoints of any number of ranks, and single files of any strategy: each rank reads
  its own parts, out of a mapped file or of the shards. No whole tensor is on a device.
- Nothing is loaded before its checksums are compared; of shards, each rank compares some.
- What one rank cannot write or read is the same error on all ranks: nobody waits for ever.
- A save may be written in the background (`saves.next_save`), by every rank its own shards from a copy in its
  CPU memory. The threads that write agree over a gloo group of their own, which training never uses.
- With `save_distributed_checkpoint=False` the tensors are gathered on rank 0 one after another, and the file
  is the same as without any sharding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from onn_lightning.checkpoint import folders, reading, sharded
from onn_lightning.checkpoint.background import Job, Saves
from onn_lightning.checkpoint.older import in_todays_shapes
from onn_lightning.checkpoint.reading import CheckpointError
from onn_lightning.checkpoint.shard_storage import ShardReader
from onn_lightning.checkpoint.sharded import OPTIMIZERS, WEIGHTS
from onn_lightning.checkpoint.sharded_saving import save_divided
from onn_lightning.checkpoint.stored_tensors import FolderTensors, MappedTensors, StoredTensors
from onn_lightning.checkpoint.tensor_stream import TORCH_DTYPES
from onn_lightning.distributed.failures import raise_on_all_ranks


class ShardedStrategy(ModelParallelStrategy):
    """Arguments are those of `ModelParallelStrategy`."""

    _stored: StoredTensors | None = None
    """Tensors of the checkpoint that is being loaded."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The trainer hands the state over, see `load_optimizer_state_dict`."""
        return True

    # ---- saving ----------------------------------------------------------------------------------

    @cached_property
    def saves(self) -> Saves:
        """Those of this rank's shards."""
        return Saves()

    @cached_property
    def _writers(self) -> dist.ProcessGroup:
        """The group of the threads that write in the background; all ranks make it at the first such save."""
        return dist.new_group(timeout=self._timeout, backend="gloo")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights: sharded as they are, or whole on rank 0 and none elsewhere."""
        assert self.lightning_module is not None
        state: dict[str, Any] = self.lightning_module.state_dict()
        return state if self._save_distributed_checkpoint else self._gathered(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer: sharded as it is, or whole on rank 0 and none elsewhere."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        state = optimizer.state_dict()
        if self._save_distributed_checkpoint:
            return state
        return {**state, "state": {number: self._gathered(entry) for number, entry in state["state"].items()}}

    def _gathered(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        copies: dict[tuple[Any, ...], Tensor] = {}  # tied tensors stay one
        for name, value in entries.items():
            if isinstance(value, Tensor):
                one = sharded.memory_of(value)
                if one not in copies:
                    full = value.full_tensor() if isinstance(value, DTensor) else value
                    copies[one] = full.detach().cpu() if self.is_global_zero else full.new_empty(0)
                value = copies[one]
            if self.is_global_zero:
                whole[name] = value
        return whole

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; called on all ranks.

        Args:
            checkpoint: as the trainer makes it.
            filepath: the one of rank 0 counts.
            storage_options: None; there are none.
        Raises:
            OSError: on all ranks, if any of them cannot write; what was there before is intact.
        """
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            super(ModelParallelStrategy, self).save_checkpoint(checkpoint, path, storage_options)
            return
        if storage_options is not None:
            raise TypeError(f"storage_options is {storage_options!r}: {type(self).__name__} has none")
        failure: Exception | None = None
        try:
            self.saves.wait()
        except Exception as error:
            failure = error
        raise_on_all_ranks(failure)

        divided = sharded.divide(checkpoint)

        def copied() -> Job:
            return partial(save_divided, divided.copied(), path, self._writers)

        self.saves.save(partial(save_divided, divided, path, None), copied)

    def teardown(self) -> None:
        """The end of the trainer: nothing is left under way."""
        try:
            self.saves.wait()
        finally:
            super().teardown()

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove a checkpoint, never leaving half of it under its name."""
        if self.is_global_zero:
            folders.remove(Path(filepath))

    # ---- loading ---------------------------------------------------------------------------------

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Compare a checkpoint with its checksums and read its plain data.

        Args:
            checkpoint_path: a sharded checkpoint or a file; the one of rank 0 counts.
            weights_only: True or None; either way nothing but plain data and tensors is read.
        Returns:
            The checkpoint; the tensors of a sharded one are not in it: each rank reads its own parts in
            `load_model_state_dict` and `load_optimizer_state_dict`.
        Raises:
            CheckpointError: on all ranks, if any of them finds it damaged or cannot read it.
        """
        path = Path(self.broadcast(checkpoint_path))
        checkpoint: dict[str, Any] = {}
        failure: str | None = None
        try:
            if weights_only is False:
                raise CheckpointError(f"{path}: not read with weights_only=False, which would run its code")
            checkpoint, self._stored = self._open(path)
        except Exception as error:  # of whatever kind: the other ranks must hear of it
            failure = str(error)
        failures: list[str | None] = [None] * self.world_size
        dist.all_gather_object(failures, failure)
        for rank, message in enumerate(failures):
            if message is not None:
                raise CheckpointError(message if rank == self.global_rank else f"{message} (rank {rank})")
        return checkpoint

    def _open(self, path: Path) -> tuple[dict[str, Any], StoredTensors]:
        if path.is_dir():
            sharded.require_intact(path, self.global_rank, self.world_size)
            return sharded.load_plain(path), FolderTensors(path, sharded.open_index(path))
        if self.is_global_zero:
            reading.require_intact(path)
        checkpoint = reading.load(path, mmap=True)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(WEIGHTS), dict):
            raise CheckpointError(f"{path}: not a checkpoint, it holds no '{WEIGHTS}'")
        assert self.lightning_module is not None
        checkpoint = in_todays_shapes(checkpoint, self.lightning_module)
        return checkpoint, MappedTensors(sharded.tensors_of(checkpoint))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights, each rank its parts.

        Args:
            checkpoint: as `load_checkpoint` returned it.
            strict: whether the names must be the same.
        Raises:
            CheckpointError: if they are not and must be.
        """
        assert self.lightning_module is not None and self._stored is not None
        own = sharded.divide({WEIGHTS: self.lightning_module.state_dict()})
        needed = own.tensors.keys() | own.tied.keys()
        stored = {place for place in self._stored.tensors if place.startswith(f"{WEIGHTS}.")}
        if strict and needed != stored:
            raise CheckpointError(
                "the checkpoint's weights are not those of this model: it lacks "
                f"{_some(needed - stored)}, and has besides {_some(stored - needed)}"
            )
        self._load({place: tensor for place, tensor in own.tensors.items() if place in stored})

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the states of the optimizers, each rank its parts.

        Args:
            checkpoint: as `load_checkpoint` returned it.
        Raises:
            ValueError: for a state of other parameter groups or shapes.
        """
        for number, optimizer in enumerate(self.optimizers):
            saved = checkpoint[OPTIMIZERS][number]
            state = {parameter: dict(entries) for parameter, entries in saved["state"].items()}
            tensors = self._room_for_state(number, optimizer, state)
            self._load(tensors)
            optimizer.load_state_dict({**saved, "state": state})
        self._stored = None

    def _room_for_state(
        self, number: int, optimizer: Optimizer, state: dict[int, dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Empty tensors for an optimizer's state, sharded like its parameters: into `state`, and by place."""
        assert self._stored is not None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        tensors: dict[str, Tensor] = {}
        for place, (parameter, key) in sharded.optimizer_places(self._stored.tensors, number).items():
            stored = self._stored.tensors[place]
            dtype = TORCH_DTYPES[stored.dtype]
            if parameter < len(parameters) and parameters[parameter].shape == stored.shape:
                tensors[place] = torch.empty_like(parameters[parameter].detach(), dtype=dtype)
            else:  # a number; or of another model, which the optimizer refuses
                tensors[place] = torch.empty(stored.shape, dtype=dtype)
            state.setdefault(parameter, {})[key] = tensors[place]
        return tensors

    def _load(self, tensors: dict[str, Tensor]) -> None:
        assert self._stored is not None
        planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            dcp.load(tensors, storage_reader=ShardReader(self._stored), planner=planner)
        except CheckpointException as error:
            rank, (reason, _) = min(error.failures.items())
            raise CheckpointError(f"the checkpoint cannot be loaded (rank {rank}: {reason})") from error


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "") or "none"
