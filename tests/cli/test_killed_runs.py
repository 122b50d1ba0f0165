"""A training run killed at any moment goes on from a whole checkpoint with the same losses, bit for bit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from command_processes import DDP, ended, printed, recorded, start, wait_until
from lightning.pytorch import Callback

from onn_lightning.checkpoint.complete import newest_intact_checkpoint

Write = Callable[..., str]


class LargeState(Callback):
    """Makes a checkpoint so large that writing it takes longer than a training step."""

    def state_dict(self) -> dict[str, Any]:
        return {"state": torch.zeros(2**20)}


def changes(file: str, stop_at: int | None = None, saved: bool = True) -> dict[str, Any]:
    records = {
        "class_path": "command_processes.RecordsLosses",
        "init_args": {"file": file, "stop_at": stop_at},
    }
    saves = {
        "class_path": "onn_lightning.callbacks.RunCheckpoint",
        "init_args": {"every_n_train_steps": 1},
    }
    report = {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}}
    large = {"class_path": f"{__name__}.LargeState"}
    return {
        "trainer.callbacks": [records, report, *([saves, large] if saved else [])],
        "trainer.enable_checkpointing": saved,
        "trainer.logger": False,
        "trainer.limit_val_batches": 0,
        "trainer.max_steps": 1000,
    }


def trains_on(processes: list[BaseProcess], record: Path) -> None:
    """Come back once a run has trained three batches more: the save of the first one is complete."""

    def batches() -> int:
        return record.read_bytes().count(b"\n") if record.exists() else 0

    before = batches()
    wait_until(
        lambda: batches() >= before + 3 or not all(process.is_alive() for process in processes), seconds=120
    )


@pytest.mark.slow
def test_fifty_kills_at_any_moment_change_no_loss(write_config: Write, folder: Path) -> None:
    chance = random.Random(6)
    config = write_config("killed.yaml", changes("killed"))
    command, run = ("fit", "--config", config, "--resume"), folder / "runs/killed"
    in_saving = 0
    for kill in range(50):
        (process,) = start(command, folder)
        trains_on([process], folder / "killed.0")
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        assert ended([process]) == [-9], printed(folder)[-2000:]
        in_saving += bool(list(run.glob("checkpoints/.*.partial")))
        assert kill < 5 or newest_intact_checkpoint(run) is not None
    assert printed(folder).count("passed over") == 0  # no start found a checkpoint that was not whole
    assert in_saving >= 10
    last = max(recorded(folder / "killed")) + 3
    ends = write_config("ends.yaml", changes("killed", stop_at=last))
    unbroken = write_config("unbroken.yaml", changes("unbroken", stop_at=last, saved=False))
    assert ended(start(("fit", "--config", ends, "--run=killed", "--resume"), folder)) == [0]
    assert ended(start(("fit", "--config", unbroken), folder)) == [0]
    losses = recorded(folder / "killed")
    assert sorted(losses) == list(range(1, last + 1)) and last > 10
    assert losses == recorded(folder / "unbroken")


@pytest.mark.slow
def test_kills_of_one_of_two_ranks_or_of_both_change_no_loss(write_config: Write, folder: Path) -> None:
    chance = random.Random(2)
    config = write_config("killed.yaml", changes("killed"))
    for victims in ([0], [1], [0, 1], [1], [0]):
        ranks = start(("fit", "--config", config, "--resume", *DDP), folder, count=2)
        trains_on(ranks, folder / "killed.0")
        time.sleep(chance.uniform(0, 0.2))
        for victim in victims:
            ranks[victim].kill()
        time.sleep(0.1)  # the other one notices, or hangs
        for rank in ranks:
            rank.kill()
        assert -9 in ended(ranks), printed(folder)[-2000:]
    last = max(recorded(folder / "killed")) + 3
    ends = write_config("ends.yaml", changes("killed", stop_at=last))
    unbroken = write_config("unbroken.yaml", changes("unbroken", stop_at=last, saved=False))
    assert ended(start(("fit", "--config", ends, "--run=killed", "--resume", *DDP), folder, 2)) == [0, 0]
    assert ended(start(("fit", "--config", unbroken, *DDP), folder, 2)) == [0, 0]
    for rank in (0, 1):
        assert recorded(folder / "killed", rank) == recorded(folder / "unbroken", rank)
    assert recorded(folder / "killed") != recorded(folder / "killed", 1)
