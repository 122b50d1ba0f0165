"""SIGTERM, SLURM's signals and Ctrl-C end a step, save it, and stop all ranks at the same one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from command_processes import DDP, ended, printed, recorded, start, wait_until
from lightning.pytorch import Callback, Trainer

from onn_lightning.checkpoint.complete import newest_intact_checkpoint

Write = Callable[..., str]
TEN_STEPS = {"trainer.max_steps": 10, "trainer.logger": False, "trainer.limit_val_batches": 0}


class FallsAsleep(Callback):
    """Does not come to an end, in a step or in a save, once a file is there; the last rank alone does so."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._sleep("step", trainer)

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        self._sleep("save", trainer)

    def _sleep(self, where: str, trainer: Trainer) -> None:
        if (where, trainer.global_rank) == (self.where, trainer.world_size - 1) and Path("sleep").exists():
            Path("asleep").touch()
            time.sleep(100)


class Accumulates(Callback):
    """Writes down how many batches make the step in which a run stops."""

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        Path("stopped").write_text(f"{batches} {trainer.global_step}")


class SignalInValidation(Callback):
    """Receives SIGTERM in the middle of the validation after the fourth step."""

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and not Path("sent").exists():
            Path("sent").touch()
            signal.raise_signal(signal.SIGTERM)


def callbacks(name: str, *further: dict[str, Any], seconds: float = 0.02, grace_period: float = 60) -> Any:
    records = {"file": name, "seconds": seconds}
    return [
        {"class_path": "command_processes.RecordsLosses", "init_args": records},
        {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}},
        {"class_path": "onn_lightning.callbacks.GracefulStop", "init_args": {"grace_period": grace_period}},
        *further,
    ]


def has_trained(record: Path, batches: int, processes: list[BaseProcess]) -> None:
    def there() -> bool:
        running = all(process.is_alive() for process in processes)
        return not running or (record.exists() and record.read_bytes().count(b"\n") >= batches)

    wait_until(there)


def send(number: int, *processes: BaseProcess) -> None:
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, number)


def saved_step(run: Path) -> int:
    path = newest_intact_checkpoint(run)
    assert path is not None
    return int(torch.load(path, weights_only=True)["global_step"])


@pytest.mark.slow
def test_two_ranks_stop_at_one_step_whoever_gets_the_signal_and_go_on_bit_for_bit(
    write_config: Write, folder: Path
) -> None:
    changes = TEN_STEPS | {"trainer.max_steps": 90, "trainer.callbacks": callbacks("stopped")}
    command = ("fit", "--config", write_config("stopped.yaml", changes), "--resume", *DDP)
    for number, receivers, code in (
        (signal.SIGTERM, [1], 143),
        (signal.SIGTERM, [0, 1], 143),
        (signal.SIGINT, [0], 130),
    ):
        before = max(recorded(folder / "stopped")) if (folder / "stopped.0").exists() else 0
        ranks = start(command, folder, count=2)
        has_trained(folder / "stopped.0", before + 2, ranks)
        send(number, *(ranks[rank] for rank in receivers))
        assert ended(ranks) == [code, code], printed(folder)[-3000:] + printed(folder, 1)[-3000:]
        steps = [max(recorded(folder / "stopped", rank)) for rank in (0, 1)]
        assert steps[0] == steps[1] == saved_step(folder / "runs/stopped") < 90
    assert ended(start(command, folder, 2)) == [0, 0]
    unbroken = changes | {"trainer.callbacks": callbacks("unbroken", seconds=0)}
    command = ("fit", "--config", write_config("unbroken.yaml", unbroken), *DDP)
    assert ended(start(command, folder, 2)) == [0, 0]
    for rank in (0, 1):
        assert recorded(folder / "stopped", rank) == recorded(folder / "unbroken", rank)


@pytest.mark.parametrize(("where", "count"), [("step", 1), ("save", 1), ("step", 2)])
def test_what_does_not_end_within_the_grace_period_is_left_and_the_checkpoint_before_it_is_whole(
    write_config: Write, folder: Path, where: str, count: int
) -> None:
    sleeps = {"class_path": f"{__name__}.FallsAsleep", "init_args": {"where": where}}
    saves = {
        "class_path": "onn_lightning.callbacks.RunCheckpoint",
        "init_args": {"every_n_train_steps": 1, "in_background": False},  # nothing else is under way
    }
    given = callbacks("late", sleeps, saves, grace_period=1)
    config = write_config("late.yaml", TEN_STEPS | {"trainer.max_steps": 1000, "trainer.callbacks": given})
    ranks = start(("fit", "--config", config, *(DDP if count == 2 else ())), folder, count)
    has_trained(folder / "late.0", 2, ranks)
    (folder / "sleep").touch()
    wait_until((folder / "asleep").exists)
    before = saved_step(folder / "runs/late")
    sent = time.monotonic()
    send(signal.SIGTERM, *ranks)  # of two, one sleeps and the other waits for it in a collective
    assert ended(ranks) == [143] * count, printed(folder)
    assert time.monotonic() - sent < 20
    for rank in range(count):
        assert "not done with the step and its checkpoint within 1 seconds" in printed(folder, rank)
    assert saved_step(folder / "runs/late") == before


def test_a_step_of_several_batches_is_ended_as_a_whole(write_config: Write, folder: Path) -> None:
    given = callbacks("parts", {"class_path": f"{__name__}.Accumulates"})
    changes = {"trainer.max_steps": 1000, "trainer.accumulate_grad_batches": 3, "trainer.callbacks": given}
    config = write_config("parts.yaml", TEN_STEPS | {"data.init_args.batches_per_epoch": 300} | changes)
    (process,) = start(("fit", "--config", config), folder)
    has_trained(folder / "parts.0", 4, [process])
    send(signal.SIGTERM, process)
    assert ended([process]) == [143], printed(folder)
    batches, steps = map(int, (folder / "stopped").read_text().split())
    assert batches == 3 * steps and saved_step(folder / "runs/parts") == steps


def test_a_signal_in_a_validation_changes_no_later_loss(write_config: Write, folder: Path) -> None:
    signals = {"class_path": f"{__name__}.SignalInValidation"}
    for name, further in (("stopped", [signals]), ("unbroken", [])):
        changes = {"trainer.logger": False, "trainer.max_steps": 10}
        config = write_config(
            f"{name}.yaml", changes | {"trainer.callbacks": callbacks(name, *further, seconds=0)}
        )
        if further:
            assert ended(start(("fit", "--config", config), folder)) == [143], printed(folder)
            assert saved_step(folder / "runs/stopped") == 4
        assert ended(start(("fit", "--config", config, "--resume"), folder)) == [0], printed(folder)
    assert recorded(folder / "stopped") == recorded(folder / "unbroken")


SCONTROL = """#!/bin/sh
echo "$@" "$(ls runs/*/checkpoints)" >> requeued
"""


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_slurm_job_is_saved_and_put_into_the_queue_again_before_its_limit_but_not_when_preempted(
    write_config: Write, folder: Path, number: int, requeued: bool
) -> None:
    (folder / "bin").mkdir()
    (folder / "bin/scontrol").write_text(SCONTROL)
    (folder / "bin/scontrol").chmod(0o755)
    slurm = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    changes = TEN_STEPS | {"trainer.max_steps": 30, "trainer.callbacks": callbacks("job")}
    config = write_config("job.yaml", changes)
    command = ("fit", "--config", config, "--resume")
    (process,) = start(command, folder, environment=slurm)
    has_trained(folder / "job.0", 2, [process])
    send(number, process)
    assert ended([process]) == [143], printed(folder)
    assert saved_step(folder / "runs/job") == max(recorded(folder / "job")) < 30
    assert (folder / "requeued").exists() == requeued
    if requeued:
        words = (folder / "requeued").read_text().split()
        assert words[:2] == ["requeue", "4711"] and "last.ckpt" in words  # saved before it is queued
        assert ended(start(command, folder, environment=slurm)) == [0], printed(folder)
        assert sorted(recorded(folder / "job")) == list(range(1, 31))
