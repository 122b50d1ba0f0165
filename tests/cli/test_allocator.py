"""The allocator is told to keep memory, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource
from onn_lightning.cli.allocator import keep_freed_memory
kept = {kept}
assert not kept or keep_freed_memory()
def churn():
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
for _ in range(3):
    churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_large_block_freed_and_asked_for_again_costs_no_page_faults() -> None:
    faults = {
        kept: int(subprocess.check_output([sys.executable, "-c", MEASURE.format(kept=kept)], text=True))
        for kept in (False, True)
    }
    assert faults[True] < faults[False] / 10
