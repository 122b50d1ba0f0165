"""`DataParallel`: the ranks that read different parts of one global batch, and what they add up.

Notable:
- Sums are functional collectives: what is computed meanwhile hides them, and whoever reads the result waits
  for it, on CUDA without the host.
- Ranks that share a part of the batch (tensor parallelism) are counted once: a group holds one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as functional


@dataclass(frozen=True)
class DataParallel:
    """The ranks over which gradients are averaged.

    Args:
        size: how many.
        group: name of their process group, which a copy may hold as well; None: there is one rank.
    """

    size: int = 1
    group: dist.distributed_c10d.GroupName | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor, on all of them; outside autograd."""
        return tensor if self.group is None else functional.all_reduce(tensor, "sum", self.group)


def to_device(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Numbers that the host knows, in the type and on the device of a tensor, without waiting for it."""
    host = torch.tensor(numbers, dtype=like.dtype)
    return (host.pin_memory() if like.is_cuda else host).to(like.device, non_blocking=True)
