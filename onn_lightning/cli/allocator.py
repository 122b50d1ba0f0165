"""glibc's allocator, told to keep what training on a CPU frees and asks for again at every step.

Notable:
- By default glibc returns large freed blocks to the kernel, which must zero their pages again at the
  next step. Keeping them makes a training step on two cores about 10 % faster (see
  `benchmarks/RESULTS.md`); peak memory stays what the step needs.
- Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEEP = 2**30
"""Bytes: blocks up to this size come from the heap, and so much may lie free at its top."""


def keep_freed_memory() -> bool:
    """Tell glibc; False where the C library is another one or refuses."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, KEEP)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP))
