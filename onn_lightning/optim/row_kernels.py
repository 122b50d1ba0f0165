"""Loops over the rows that fire, compiled for the CPU.

Notable:
- torch's fused AdamW takes whole tensors. To hand it the firing rows as views costs several microseconds a
  run of rows, and to gather and scatter them moves more bytes than the update itself (measured with a random
  half of 1365 x 512 at rest: 3.0 and 2.6 times the whole tensor's step; these loops: 0.55).
- The arithmetic is that of torch's kernels, with fused multiply-adds where they have them, so that a row
  moves alike whether its neighbours rest or not.
- The rows are shared out to as many threads as torch has; the loops let go of the interpreter's lock.

Letters: R rows of a parameter, K of them firing, D numbers in a row.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba.extending import intrinsic
from torch import Tensor

from onn_lightning.compiled import threaded_kernel

Array = np.ndarray[Any, Any]

SHARED_FROM = 1 << 16
"""Numbers below which a tensor's rows are not shared out: waking a thread costs as much as moving them."""


def fits(*tensors: Tensor) -> bool:
    """Whether the loops can work on these tensors where they are."""
    return all(
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.dtype == tensors[0].dtype
        and tensor.is_contiguous()
        for tensor in tensors
    )


class RowWork:
    """Loops to be run, shared out to the threads.

    Args:
        threads: how many; None: as many as torch uses.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._shares: list[list[Callable[[], None]]] = [[] for _ in range(threads or torch.get_num_threads())]
        self._shared_out = False

    def adamw(
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
        """AdamW on some rows; `step` counts this one. Arguments as those of `torch.optim.AdamW`."""
        beta1, beta2 = betas
        constants = (
            1 - lr * weight_decay,
            1 - beta1,
            beta2,
            1 - beta2,
            math.sqrt(1 - beta2**step),
            eps,
            -lr / (1 - beta1**step),
        )
        arrays = [_rows_of(tensor) for tensor in (param, grad, exp_avg, exp_avg_sq)]
        self._add(_adamw_loop, (rows,), (*arrays, np.array(constants, arrays[0].dtype)))

    def momentum(
        self, rows: Array, momentum_buffer: Tensor, grad: Tensor, update: Tensor, momentum: float
    ) -> None:
        """Muon's momentum on some rows, and Nesterov's look ahead of it into `update` [K, D]."""
        constants = np.array((1 - momentum, momentum - 1), _rows_of(grad).dtype)
        whole = (_rows_of(momentum_buffer), _rows_of(grad), constants)
        self._add(_momentum_loop, (rows, _rows_of(update)), whole)

    def move(self, rows: Array, param: Tensor, update: Tensor, decay: float, step_size: float) -> None:
        """param * decay + step_size * update on some rows, update [K, D]."""
        constants = np.array((decay, step_size), _rows_of(param).dtype)
        self._add(_move_loop, (rows, _rows_of(update)), (_rows_of(param), constants))

    def nonzero(self, grad: Tensor, nonzero: Tensor) -> None:
        """Which rows hold anything but zeros, into the bool `nonzero` [R]."""
        self._add(_nonzero_loop, (_rows_of(grad), nonzero.numpy()), ())

    def _add(self, loop: Callable[..., None], cut: Sequence[Array], whole: Sequence[Array]) -> None:
        """A loop over arrays that are cut into shares, and arrays that every thread sees whole."""
        count, shares = len(cut[0]), len(self._shares)
        width = (whole[0] if whole else cut[0]).shape[1]
        if count * width < SHARED_FROM:
            self._shares[0].append(functools.partial(loop, *cut, *whole))
            return
        self._shared_out = True
        for number, share in enumerate(self._shares):
            part = slice(count * number // shares, count * (number + 1) // shares)
            share.append(functools.partial(loop, *(array[part] for array in cut), *whole))

    def run(self) -> None:
        """Run all, and return when all have run."""
        own, *others = self._shares
        running = []
        if self._shared_out and others:
            pool = _pool(os.getpid(), len(others))
            running = [pool.submit(_run_all, share) for share in others]
        _run_all(own)
        for future in running:
            future.result()


def nonzero_rows(tensor: Tensor) -> Tensor:
    """bool [R]: the rows of a tensor [R, ...] that hold anything but zeros."""
    if not fits(tensor):
        return tensor.ne(0).flatten(1).any(dim=1)
    nonzero = torch.empty(len(tensor), dtype=torch.bool)
    work = RowWork()
    work.nonzero(tensor, nonzero)
    work.run()
    return nonzero


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work; by process, since a forked one inherits none of them."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")


def _run_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _rows_of(tensor: Tensor) -> Array:
    """A tensor's own memory as [R, D]; D is 1 for a vector."""
    array = tensor.detach().numpy()
    return array.reshape(len(array), -1)


# ---- the loops; K comes from the rows' numbers ----------------------------------------------------------


def _emit_fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    return a(a, b, c), lambda context, builder, signature, values: builder.fma(*values)


_fma: Any = intrinsic(_emit_fma)
"""a * b + c, rounded once."""


@threaded_kernel
def _adamw_loop(rows: Any, param: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, constants: Any) -> None:
    decay, grad_weight, beta2, square_weight, correction2, eps, step_size = constants
    for k in range(rows.shape[0]):
        i = rows[k]
        for j in range(param.shape[1]):
            g = grad[i, j]
            mean = _fma(grad_weight, g - exp_avg[i, j], exp_avg[i, j])
            square = _fma(square_weight * g, g, beta2 * exp_avg_sq[i, j])
            exp_avg[i, j] = mean
            exp_avg_sq[i, j] = square
            param[i, j] = param[i, j] * decay + step_size * mean / (np.sqrt(square) / correction2 + eps)


@threaded_kernel
def _momentum_loop(rows: Any, update: Any, momentum_buffer: Any, grad: Any, constants: Any) -> None:
    grad_weight, ahead = constants
    for k in range(rows.shape[0]):
        i = rows[k]
        for j in range(grad.shape[1]):
            g = grad[i, j]
            momentum = _fma(grad_weight, g - momentum_buffer[i, j], momentum_buffer[i, j])
            momentum_buffer[i, j] = momentum
            update[k, j] = _fma(ahead, momentum - g, momentum)


@threaded_kernel
def _move_loop(rows: Any, update: Any, param: Any, constants: Any) -> None:
    decay, step_size = constants
    for k in range(rows.shape[0]):
        i = rows[k]
        for j in range(param.shape[1]):
            param[i, j] = _fma(update[k, j], step_size, param[i, j] * decay)


@threaded_kernel
def _nonzero_loop(grad: Any, nonzero: Any) -> None:
    for i in range(grad.shape[0]):
        found = False
        for j in range(grad.shape[1]):
            found |= grad[i, j] != 0
        nonzero[i] = found
