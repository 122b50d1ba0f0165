"""How a trainer's strategy lays out its ranks; asked once its processes are there."""

from __future__ import annotations

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh

from onn_lightning.distributed.data_parallel import DataParallel
from onn_lightning.distributed.fsdp2_strategy import FSDP2Strategy
from onn_lightning.distributed.parallelize import Sharding


def mesh_of(strategy: Strategy) -> DeviceMesh | None:
    """The mesh [data_parallel, tensor_parallel] over which weights are sharded; None: they are whole."""
    return strategy.device_mesh if isinstance(strategy, ModelParallelStrategy) else None


def sharding_of(strategy: Strategy) -> Sharding:
    """How they are: as `FSDP2Strategy` is told to, by default under Lightning's own strategy."""
    return strategy.sharding if isinstance(strategy, FSDP2Strategy) else Sharding()


def data_parallel_of(strategy: Strategy) -> DataParallel:
    """The ranks that read different parts of a batch: with a mesh those of "data_parallel", else all."""
    if not (dist.is_available() and dist.is_initialized()):
        return DataParallel()
    mesh = mesh_of(strategy)
    group = dist.distributed_c10d._get_default_group() if mesh is None else mesh["data_parallel"].get_group()
    size = dist.get_world_size(group)
    return DataParallel(size, group.group_name) if size > 1 else DataParallel()
