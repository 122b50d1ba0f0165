"""The loops over the rows that fire, compiled for the CPU by numba; `row_kernels` calls them.

Notable:
- The arithmetic is that of torch's kernels, with fused multiply-adds where they have them, so that a row
  moves alike whether its neighbours rest or not.
- AdamW's loop runs over all tensors of a step in one call and finds them by their addresses: a call a tensor
  would cost ten microseconds each, which is more than a vector or a small matrix takes to move.
- Nothing here checks a bound: the callers do.

Letters: R rows of a parameter, K of them firing, D numbers in a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from onn_lightning.compiled import threaded_kernel


def _emit_fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    return a(a, b, c), lambda context, builder, signature, values: builder.fma(*values)


def _emit_pointer(typing: Any, address: Any) -> Any:
    return types.voidptr(address), lambda context, builder, signature, values: builder.inttoptr(
        values[0], cgutils.voidptr_t
    )


_fma: Any = intrinsic(_emit_fma)
"""a * b + c, rounded once."""
_pointer: Any = intrinsic(_emit_pointer)
"""What stands at an address."""


@threaded_kernel
def adamw_loop(
    addresses: Any, shapes: Any, starts: Any, rows: Any, constants: Any, first: int, last: int
) -> None:
    """AdamW on rows of many tensors.

    Args:
        addresses: [tensors, 4] int64: of parameter, gradient and both moments, contiguous [R, D] each.
        shapes: [tensors, 2] int64: R and D.
        starts: [tensors + 1] int64: where each tensor's rows begin in `rows`.
        rows: [K of all tensors] int64: numbers of the rows to move.
        constants: [tensors, 7] of the tensors' type, see `row_kernels.AdamWRows.add`.
        first, last: the part of `rows` that this call moves.
    """
    for t in range(shapes.shape[0]):
        begin, end = max(first, starts[t]), min(last, starts[t + 1])
        if begin >= end:
            continue
        shape = (shapes[t, 0], shapes[t, 1])
        param = carray(_pointer(addresses[t, 0]), shape, constants.dtype)
        grad = carray(_pointer(addresses[t, 1]), shape, constants.dtype)
        exp_avg = carray(_pointer(addresses[t, 2]), shape, constants.dtype)
        exp_avg_sq = carray(_pointer(addresses[t, 3]), shape, constants.dtype)
        decay, grad_weight, beta2, square_weight, correction2, eps, step_size = constants[t]
        for k in range(begin, end):
            i = rows[k]
            for j in range(shape[1]):
                g = grad[i, j]
                mean = _fma(grad_weight, g - exp_avg[i, j], exp_avg[i, j])
                square = _fma(square_weight * g, g, beta2 * exp_avg_sq[i, j])
                exp_avg[i, j] = mean
                exp_avg_sq[i, j] = square
                param[i, j] = param[i, j] * decay + step_size * mean / (np.sqrt(square) / correction2 + eps)


@threaded_kernel
def momentum_loop(rows: Any, update: Any, momentum_buffer: Any, grad: Any, constants: Any) -> None:
    """Muon's momentum on the rows [K] of [R, D] tensors, and Nesterov's look ahead into `update` [K, D]."""
    grad_weight, ahead = constants
    for k in range(rows.shape[0]):
        i = rows[k]
        for j in range(grad.shape[1]):
            g = grad[i, j]
            momentum = _fma(grad_weight, g - momentum_buffer[i, j], momentum_buffer[i, j])
            momentum_buffer[i, j] = momentum
            update[k, j] = _fma(ahead, momentum - g, momentum)


@threaded_kernel
def move_loop(rows: Any, update: Any, param: Any, constants: Any) -> None:
    """param * decay + update * step_size on the rows [K] of `param` [R, D]; update [K, D]."""
    decay, step_size = constants
    for k in range(rows.shape[0]):
        i = rows[k]
        for j in range(param.shape[1]):
            param[i, j] = _fma(update[k, j], step_size, param[i, j] * decay)


@threaded_kernel
def nonzero_loop(values: Any, nonzero: Any) -> None:
    """Which rows of [R, D] hold anything but zeros, into `nonzero` [R]."""
    for i in range(values.shape[0]):
        found = values.shape[1] > 0 and values[i, 0] != 0
        if not found:  # without a way out in the middle the loop is vectorised
            for j in range(1, values.shape[1]):
                found |= values[i, j] != 0
        nonzero[i] = found
