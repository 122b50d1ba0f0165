"""`save_sharded`: all ranks write one checkpoint together, or all raise the same error.

Notable:
- A rank that dies is noticed by torch (nobody else can tell), one that fails tells the others.
- What the ranks have to agree on - who writes what, and that all have written - goes through one group: a
  thread that saves while training goes on has one of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from onn_lightning.checkpoint.reading import CheckpointError
from onn_lightning.checkpoint.shard_storage import ShardWriter
from onn_lightning.checkpoint.sharded import Divided, divide


def save_sharded(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a sharded checkpoint; a collective call.

    Args:
        checkpoint: as Lightning's trainer makes it, tensors sharded (DTensor) or the same on all ranks.
        path: its folder, the same on all ranks; a checkpoint of that name is replaced.
    Raises:
        OSError: on all ranks, if any of them cannot write; what was there before is intact.
        KeyboardInterrupt: on all ranks, if any of them was interrupted; what was there before is intact.
    """
    save_divided(divide(checkpoint), path, None, threading.Event())


def save_divided(
    divided: Divided, path: Path, group: dist.ProcessGroup | None, stop: threading.Event
) -> None:
    """Write a sharded checkpoint; a collective call of whichever threads use the group.

    Args:
        divided: the checkpoint.
        path: as for `save_sharded`.
        group: of all ranks, used by nobody else meanwhile; None: the default one.
        stop: set by another thread to have the writing given up, on all ranks.
    Raises:
        OSError, KeyboardInterrupt: as `save_sharded`.
    """
    writer = ShardWriter(path, divided.plain, divided.tied, stop)
    alone = not dist.is_initialized()
    try:
        dcp.save(
            divided.tensors,
            storage_writer=writer,
            planner=dcp.DefaultSavePlanner(flatten_state_dict=False),
            process_group=group,
            no_dist=alone,
        )
    except CheckpointException as error:
        if alone or dist.get_rank() == 0:  # no rank is writing any more
            writer.discard()
        _raise_reason(error, path)


def _raise_reason(error: CheckpointException, path: Path) -> NoReturn:
    reasons = {rank: wrapped[0] for rank, wrapped in sorted(error.failures.items())}
    if any(isinstance(reason, KeyboardInterrupt) for reason in reasons.values()):
        raise KeyboardInterrupt from error
    rank, reason = next(iter(reasons.items()))
    if isinstance(reason, OSError):
        remedy = "make room or correct the permissions"
        if isinstance(reason, FileNotFoundError):
            remedy = "put the run folder on a file system that all nodes see"
        raise OSError(
            reason.errno,
            f"cannot write '{path}' (rank {rank}: {reason.strerror}): {remedy}, then run the same command "
            "again; checkpoints that were finished before are intact",
        ) from error
    raise CheckpointError(f"{path}: not written, rank {rank} failed: {reason!r}") from error
