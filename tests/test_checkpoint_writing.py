"""A checkpoint written by hand is there as a whole, or the one before it is."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onn_lightning.checkpoint import writing

KILLED = """
import os, signal, sys, torch
from pathlib import Path
from onn_lightning.checkpoint import writing

class Last:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)

writing.write({"weights": torch.zeros(100_000), "last": Last()}, Path(sys.argv[1]))
"""

INTERRUPTED = """
import os, signal, sys, threading, torch
from pathlib import Path
from onn_lightning.checkpoint import writing

weights = [torch.zeros(500_000) for _ in range(20)]
stopped = 0
for moment in range(1, 11):
    timer = threading.Timer(moment * 0.004, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        for number in range(1_000_000):
            writing.write({"number": number, "weights": weights}, Path(sys.argv[1]))
    except KeyboardInterrupt:
        stopped += 1
    torch.load(sys.argv[1], weights_only=True)
sys.exit(stopped)
"""


class Unwritable:
    def __reduce__(self) -> tuple[Any, ...]:
        raise OSError(28, "No space left on device")


def test_a_file_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    for number in (1, 2):
        writing.write({"number": number, "weights": torch.ones(3)}, tmp_path / "a.ckpt")
        assert torch.load(tmp_path / "a.ckpt", weights_only=True)["number"] == number
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_full_disk_leaves_the_file_that_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    writing.write({"number": 1}, tmp_path / "a.ckpt")
    with pytest.raises(OSError, match="No space"):
        writing.write({"weights": torch.zeros(100_000), "last": Unwritable()}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_process_killed_while_writing_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    writing.write({"number": 1}, tmp_path / "a.ckpt")
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.ckpt")], cwd=root)
    assert killed.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == {"number": 1}
    writing.write({"number": 2}, tmp_path / "a.ckpt")  # what the killed one left beside is overwritten
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_an_interrupt_at_any_moment_of_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    writing.write({"number": -1}, tmp_path / "a.ckpt")
    root = Path(__file__).parents[1]
    interrupted = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path / "a.ckpt")], cwd=root)
    assert interrupted.returncode == 10  # all of them ended the writing, and what was there could be read


def test_a_write_that_fails_in_the_middle_says_why_and_what_to_do(tmp_path: Path) -> None:
    writing.write({"number": 1}, tmp_path / "a.ckpt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a.ckpt' \(File too large\): make room"):
            writing.write({"weights": [torch.zeros(500_000) for _ in range(4)]}, tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
