"""A connection to what all ranks see, for a thread of its own."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed import Store


def connect() -> Store:
    """Another connection to the store of the default process group.

    Calls on one connection wait for each other: a thread that used the group's own would hold up collectives
    that are being set up.
    """
    store: Store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    return store
