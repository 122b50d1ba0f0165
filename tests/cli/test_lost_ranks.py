"""A rank that dies, hangs or fails is named by the others, and none of them stays."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from cli_standins import Waves
from command_processes import DDP, ended, printed, start, wait_until
from lightning.pytorch import Callback, Trainer

from onn_lightning.document import Document

Write = Callable[..., str]
TIMEOUT = 6.0


class SlowWaves(Waves):
    """Sine waves; the reader of one rank falls asleep for ever at one of them."""

    def __init__(self, rank: int, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.rank, self.read = rank, 0

    def __getitem__(self, index: int) -> Document:
        self.read += 1
        if self.read > 60 and os.environ["RANK"] == str(self.rank):
            time.sleep(1000)
        return super().__getitem__(index)


class Fault(Callback):
    """What befalls one rank at its third step."""

    def __init__(self, rank: int, what: str) -> None:
        self.rank, self.what = rank, what

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 2:
            if self.what == "killed":
                os.kill(os.getpid(), 9)
            if self.what == "fails":
                raise ValueError("the sensor fell off")
            if self.what == "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
            while self.what == "hangs":
                time.sleep(1)


class Looks(Callback):
    """Writes down the threads of a run, and how often its ranks asked each other by a broadcast in steps."""

    def __init__(self) -> None:
        self.broadcasts = 0

    def on_train_start(self, *_: Any) -> None:
        self.original = dist.broadcast
        dist.broadcast = self._count

    def _count(self, *arguments: Any, **named: Any) -> Any:
        self.broadcasts += 1
        return self.original(*arguments, **named)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        dist.broadcast = self.original
        threads = [thread.name for thread in threading.enumerate()]
        Path(f"looks.{trainer.global_rank}").write_text(f"{threads} {self.broadcasts} broadcasts")


def config_with(write_config: Write, *callbacks: dict[str, Any], **changes: Any) -> str:
    watchdog = {"timeout": TIMEOUT, "slow_timeout": 60}
    given = [
        {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}},
        {"class_path": "onn_lightning.callbacks.RankWatchdog", "init_args": watchdog},
        *callbacks,
    ]
    few = {"trainer.max_steps": 40, "trainer.logger": False, "trainer.limit_val_batches": 0}
    return write_config("run.yaml", few | {"trainer.callbacks": given} | changes)


def fault(rank: int, what: str) -> dict[str, Any]:
    return {"class_path": f"{__name__}.Fault", "init_args": {"rank": rank, "what": what}}


def last_line(folder: Path, rank: int) -> str:
    lines = [line for line in printed(folder, rank).splitlines() if line.startswith("onn: ")]
    assert len(lines) == 1, printed(folder, rank)
    return lines[0]


@pytest.mark.slow
def test_a_rank_that_waits_for_data_for_ever_is_named_by_three_with_what_it_does(
    write_config: Write, folder: Path
) -> None:
    waves = {"waves": {"class_path": f"{__name__}.SlowWaves", "init_args": {"rank": 1}}}
    changes = {"data.init_args.train": waves, "data.init_args.buffer_size": 8}  # it reads little at the start
    config = config_with(write_config, **changes)
    ranks = start(("fit", "--config", config, "--trainer.strategy=ddp", "--trainer.devices=3"), folder, 3)
    assert ended(ranks) == [3, 3, 3], [printed(folder, rank)[-2000:] for rank in range(3)]
    for rank in range(3):
        assert "rank 1 (optimizer step" in last_line(folder, rank)
        assert "loading data): has not moved for" in last_line(folder, rank)
    assert "in __getitem__" in printed(folder, 1)  # where it hangs


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_by_the_other(write_config: Write, folder: Path, victim: int) -> None:
    config = config_with(write_config, fault(victim, "killed"))
    ranks = start(("fit", "--config", config, *DDP), folder, 2)
    wait_until(lambda: not ranks[victim].is_alive())
    killed = time.monotonic()
    codes = ended(ranks)
    assert time.monotonic() - killed < 5 * TIMEOUT
    assert (codes[victim], codes[1 - victim]) == (-9, 3), printed(folder, 1 - victim)[-3000:]
    assert f"rank {victim}" in last_line(folder, 1 - victim)
    assert "no sign of life" in last_line(folder, 1 - victim)


def test_a_rank_that_hangs_in_a_step_is_named(write_config: Write, folder: Path) -> None:
    config = config_with(write_config, fault(1, "hangs"))
    assert ended(start(("fit", "--config", config, *DDP), folder, 2)) == [3, 3], printed(folder)[-3000:]
    assert "rank 1 (optimizer step 3, forward): has not moved for" in last_line(folder, 0)


def test_a_rank_that_fails_ends_the_other_which_names_it_and_what_it_said(
    write_config: Write, folder: Path
) -> None:
    config = config_with(write_config, fault(0, "fails"))
    assert ended(start(("fit", "--config", config, *DDP), folder, 2)) == [1, 3], printed(folder)[-3000:]
    assert last_line(folder, 0) == "onn: error: the sensor fell off"
    assert "rank 0 failed: ValueError: the sensor fell off" in last_line(folder, 1)
    assert not list(folder.glob("runs/run/checkpoints/*"))  # the other one could not take part in saving


def test_a_run_without_faults_ends_as_ever_and_its_ranks_ask_nothing_of_each_other_for_it(
    write_config: Write, folder: Path
) -> None:
    config = config_with(write_config, {"class_path": f"{__name__}.Looks"})
    command = ("fit", "--config", config, *DDP, "--trainer.enable_checkpointing=false")
    assert ended(start(command, folder, 2)) == [0, 0], printed(folder)[-3000:]
    for rank in (0, 1):
        seen = (folder / f"looks.{rank}").read_text()
        assert "rank-watchdog" in seen and "graceful-stop" in seen and seen.endswith(" 0 broadcasts")
    assert "onn: " not in printed(folder) + printed(folder, 1)


@pytest.mark.parametrize("what", ["full disk", "folder in the way"])
def test_a_checkpoint_that_rank_0_cannot_write_ends_both_and_the_other_names_it(
    write_config: Write, folder: Path, what: str
) -> None:
    saves = {
        "class_path": "onn_lightning.callbacks.RunCheckpoint",
        "init_args": {"every_n_train_steps": 3},
    }
    config = config_with(write_config, fault(0, what), saves)
    if what == "folder in the way":
        (folder / "runs/run").mkdir(parents=True)
        (folder / "runs/run/checkpoints").write_text("in the way")
    codes = ended(start(("fit", "--config", config, *DDP), folder, 2))
    assert codes in ([1, 1], [1, 3]), printed(folder)[-3000:]  # told by rank 0, or noticed by the watchdog
    reason = {"full disk": "File too large", "folder in the way": "runs/run/checkpoints"}[what]
    assert reason in last_line(folder, 0)
    assert "rank 0" in last_line(folder, 1) and reason in last_line(folder, 1)
