"""What failed on one rank fails on all: a rank that went on alone would wait for the others for ever."""

from __future__ import annotations

import torch.distributed as dist


def raise_on_all_ranks(failure: Exception | None) -> None:
    """Tell the other ranks what failed here, and learn what failed there; a collective call.

    Args:
        failure: of this rank; None: all went well.
    Raises:
        Exception: the failure of this rank.
        OSError: where only others failed: that of the first of them.
    """
    messages = [None if failure is None else str(failure)]
    if dist.is_available() and dist.is_initialized():
        messages *= dist.get_world_size()
        dist.all_gather_object(messages, messages[0])
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise OSError(f"rank {rank}: {message}")
