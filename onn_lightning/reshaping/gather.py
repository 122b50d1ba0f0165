"""`gather`: the rows and columns of a new tensor out of an old one."""

from __future__ import annotations

import torch
from torch import Tensor


def gather(old: Tensor, rows: Tensor | None, columns: Tensor | None, new: Tensor | float) -> Tensor:
    """Put rows and columns of a tensor in their new places.

    Args:
        old: the tensor so far.
        rows: [n] number of the old row for each new one, -1: a new row; None: as they are.
        columns: the same of the second dimension.
        new: what new rows and columns hold: a tensor of the new shape (or one that broadcasts), or a number.
    """
    for dimension, origins in enumerate((rows, columns)):
        if origins is None:
            continue
        origins = origins.to(old.device)
        moved = old.index_select(dimension, origins.clamp_min(0))
        is_new = (origins < 0).view(-1, *(1,) * (old.ndim - 1 - dimension))
        filled = torch.as_tensor(new, dtype=old.dtype, device=old.device)
        old = torch.where(is_new, filled, moved)
    return old
