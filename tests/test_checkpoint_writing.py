"""A checkpoint written by hand is there as a whole, or the one before it is."""

from __future__ import annotations

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
