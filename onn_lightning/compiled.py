"""Compiled loops: numba's `njit` with a disk cache where one can be written, without where none can.

numba caches beside the source file, else in the user's cache folder or `NUMBA_CACHE_DIR`; where none
of them is writable (a read-only container) it raises when the function is decorated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a loop to machine code at its first call."""
    return _compiled(function)


def threaded_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel on real numbers that several threads run at a time.

    It lets go of the interpreter's lock while it runs, and divides as numpy does: by zero too, without the
    check that would keep its loops from being vectorised.
    """
    return _compiled(function, nogil=True, error_model="numpy")


def tight_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel that makes no array, and that other such kernels may call from within their loops.

    Without numba's reference counting a call costs next to nothing; with it every array that is passed
    is counted up and down, which costs more than a short loop.
    """
    return _compiled(function, _nrt=False)


def _compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    try:
        return cast(Callable[P, R], numba.njit(cache=True, **options)(function))
    except RuntimeError:  # "cannot cache function: no locator available"
        return cast(Callable[P, R], numba.njit(**options)(function))
