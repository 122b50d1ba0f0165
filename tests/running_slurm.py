"""The Slurm that answers here, if there is one, for the tests that need it."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def _partition() -> str | None:
    if shutil.which("sbatch") is None:
        return None
    try:
        command = ["sinfo", "--noheader", "--format=%R"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.split()[0]
    except (IndexError, subprocess.TimeoutExpired):  # installed, but not running
        return None


PARTITION = _partition()
needs_slurm = pytest.mark.skipif(PARTITION is None, reason="there is no Slurm here")
