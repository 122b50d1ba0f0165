"""The benchmark of scale runs, its part for GPUs included, at a size that says nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_the_part_for_gpus_prints_the_utilisation_of_both_configs() -> None:
    command = [sys.executable, str(SCRIPT), "--tiny", "--json", "--only", "mfu"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    figures = json.loads(done.stdout)["mfu"]
    parts = ("bonsai_0.1b_mfu", "omni_3b_blocks_mfu")
    assert figures.keys() == {f"{part}_{way}" for part in parts for way in ("plain", "compiled")}
    assert all(0 < value < 1 for value in figures.values())
