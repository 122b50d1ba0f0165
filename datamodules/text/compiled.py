"""`kernel`: numba's `njit` with a disk cache where one can be written, without where none can.

numba caches beside the source file, else in the user's cache folder or `NUMBA_CACHE_DIR`; where none
of them is writable (a read-only container) it raises when the function is decorated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a loop over integers to machine code at its first call."""
    try:
        return cast(Callable[P, R], numba.njit(cache=True)(function))
    except RuntimeError:  # "cannot cache function: no locator available"
        return cast(Callable[P, R], numba.njit(function))
