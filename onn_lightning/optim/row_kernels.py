"""Work on the rows that fire, on the CPU: compiled loops, shared out to as many threads as torch has.

Notable:
- torch's fused AdamW takes whole tensors. To hand it the firing rows as views costs several microseconds a
  run of rows, and to gather and scatter them moves more bytes than the update itself (measured with a random
  half of 1365 x 512 at rest: 3.0 and 2.6 times the whole tensor's step; these loops: 0.55).
- The loops (`row_loops`) let go of the interpreter's lock, so ordinary threads can share the rows.

Letters: R rows of a parameter, K of them firing, D numbers in a row.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onn_lightning.optim import row_loops

Array = np.ndarray[Any, Any]

SHARED_FROM = 1 << 16
"""Numbers below which the rows are not shared out: waking a thread costs as much as moving them."""


def fits(*tensors: Tensor) -> bool:
    """Whether the loops can work on these tensors where they are."""
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64):
        return False
    return all([t.is_cpu and t.dtype == dtype and t.is_contiguous() for t in tensors])


class AdamWRows:
    """AdamW on some rows of many tensors of one type, in one go."""

    def __init__(self) -> None:
        self._tensors: list[tuple[Tensor, ...]] = []  # held until the loop has run: it knows addresses alone
        self._rows: list[Array] = []
        self._constants: list[Array] = []

    def add(
        self,
        rows: Array,
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        step: float,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """Add the rows of a tensor.

        Args:
            rows: [K] int64.
            param, grad, exp_avg, exp_avg_sq: equal shapes, for which `fits` holds.
            step: steps of this tensor, this one counted.
            lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        """
        self._tensors.append((param, grad, exp_avg, exp_avg_sq))
        self._rows.append(rows)
        self._constants.append(_adamw_constants(step, lr, *betas, eps, weight_decay))

    def run(self, threads: int | None = None) -> None:
        """Move all rows.

        Args:
            threads: how many; None: as many as torch uses.
        """
        if not self._tensors:
            return
        params = [tensors[0] for tensors in self._tensors]
        widths = [param.numel() // max(1, len(param)) for param in params]
        counts = [len(rows) for rows in self._rows]
        starts = np.cumsum([0, *counts])
        fixed = (
            np.array([[tensor.data_ptr() for tensor in tensors] for tensors in self._tensors]),
            np.array([(len(param), width) for param, width in zip(params, widths, strict=True)]),
            starts,
            np.concatenate(self._rows),
            np.stack(self._constants).astype(params[0].detach().numpy().dtype),
        )
        bounds = _even_shares(starts, np.array(widths), threads or torch.get_num_threads())
        _run(
            [functools.partial(row_loops.adamw_loop, *fixed, first, last) for first, last in pairwise(bounds)]
        )


def momentum_rows(
    rows: Array, momentum_buffer: Tensor, grad: Tensor, update: Tensor, momentum: float
) -> None:
    """Muon's momentum on the rows [K] of [R, D] tensors, and Nesterov's look ahead into `update` [K, D]."""
    grad_array = _rows_of(grad)
    constants = np.array((1 - momentum, momentum - 1), grad_array.dtype)
    _over_rows(
        row_loops.momentum_loop,
        (rows, _rows_of(update)),
        (_rows_of(momentum_buffer), grad_array, constants),
        width=grad.shape[1],
    )


def move_rows(rows: Array, param: Tensor, update: Tensor, decay: float, step_size: float) -> None:
    """param * decay + update * step_size on the rows [K] of `param` [R, D]; update [K, D]."""
    array = _rows_of(param)
    constants = np.array((decay, step_size), array.dtype)
    _over_rows(row_loops.move_loop, (rows, _rows_of(update)), (array, constants), width=param.shape[1])


def nonzero_rows(tensor: Tensor) -> Tensor:
    """bool [R]: the rows of a tensor [R, ...] that hold anything but zeros."""
    if not fits(tensor):
        return tensor.ne(0).flatten(1).any(dim=1)
    nonzero, array = torch.empty(len(tensor), dtype=torch.bool), _rows_of(tensor)
    _over_rows(row_loops.nonzero_loop, (array, nonzero.numpy()), (), width=array.shape[1])
    return nonzero


@functools.lru_cache(maxsize=64)
def _adamw_constants(
    step: float, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> Array:
    """What AdamW's loop needs of a step, the same for most tensors of a group."""
    return np.array(
        (
            1 - lr * weight_decay,
            1 - beta1,
            beta2,
            1 - beta2,
            math.sqrt(1 - beta2**step),
            eps,
            -lr / (1 - beta1**step),
        )
    )


def _rows_of(tensor: Tensor) -> Array:
    """A tensor's own memory as [R, D]; D is 1 for a vector."""
    array = tensor.detach().numpy()
    return array if array.ndim == 2 else array.reshape(len(array), -1)


# ---- threads ----------------------------------------------------------------------------------------------


def _even_shares(starts: Array, widths: Array, shares: int) -> list[int]:
    """Where to cut a row of rows so that every share has as many numbers: [shares + 1], from 0 to the end."""
    ends = np.cumsum(np.diff(starts) * widths)
    total = int(ends[-1])
    if shares == 1 or total < SHARED_FROM:
        return [0, int(starts[-1])]
    bounds = [0]
    for share in range(1, shares):
        wanted = total * share // shares
        tensor = int(np.searchsorted(ends, wanted, side="right"))
        into = wanted - (int(ends[tensor - 1]) if tensor else 0)
        bounds.append(int(starts[tensor]) + into // int(widths[tensor]))
    return [*bounds, int(starts[-1])]


def _over_rows(loop: Callable[..., None], cut: Sequence[Array], whole: Sequence[Array], width: int) -> None:
    """A loop over arrays that are cut into shares, and arrays that every thread sees whole."""
    count = len(cut[0])
    shares = torch.get_num_threads() if count * width >= SHARED_FROM else 1
    parts = [slice(count * n // shares, count * (n + 1) // shares) for n in range(shares)]
    _run([functools.partial(loop, *(array[part] for array in cut), *whole) for part in parts])


def _run(calls: Sequence[Callable[[], None]]) -> None:
    """Run every call in a thread of its own, the first one in this; return when all are done."""
    first, *others = calls
    running = [_pool(os.getpid(), len(others)).submit(call) for call in others]
    first()
    for future in running:
        future.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work; by process, since a forked one inherits none of them."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")
