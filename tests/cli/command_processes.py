"""The `onn` command in real processes, which can be killed; one process or as many as there are ranks.

Notable:
- Forked from the server of `ranks`, which has everything imported: a start takes a fraction of a second.
- What a process prints goes to `rank<n>.log` in its current folder.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from ranks import PRELOADED, torchrun_environment

DDP = ("--trainer.strategy=ddp", "--trainer.devices=2")


def start(
    arguments: Sequence[str], folder: Path, count: int = 1, environment: Mapping[str, str] | None = None
) -> list[BaseProcess]:
    """Start `onn` and come back.

    Args:
        arguments: of the command.
        folder: current folder of the processes.
        count: ranks; one has no environment of a distributed run.
        environment: further variables.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    shared = {**(torchrun_environment(count) if count > 1 else {}), **(environment or {})}
    processes: list[BaseProcess] = []
    for rank in range(count):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else shared
        process = context.Process(
            target=_command, args=(list(arguments), folder, rank, own, list(sys.path)), daemon=True
        )
        process.start()
        processes.append(process)
    return processes


def ended(processes: Sequence[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Exit codes of processes; whoever has not ended in time is killed and has None."""
    deadline = time.monotonic() + seconds
    codes: list[int | None] = []
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        codes.append(process.exitcode)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Come back once a condition holds.

    Raises:
        TimeoutError: if that takes longer.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.002)


def printed(folder: Path, rank: int = 0) -> str:
    """What a rank has printed in all its starts."""
    return (folder / f"rank{rank}.log").read_text()


def _command(
    arguments: list[str], folder: Path, rank: int, environment: dict[str, str], path: list[str]
) -> None:
    from onn_lightning.cli.main import main

    sys.path[:] = path
    os.environ.update(environment)
    os.chdir(folder)
    log = os.open(f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


class RecordsLosses(Callback):
    """Appends the loss of every batch to a file at once, bit for bit, and ends the run at a step.

    Args:
        file: rank r adds ".r" to the name.
        stop_at: optimizer step after which to stop; the learning rate's schedule does not see it.
        seconds: how long every step takes.
    """

    def __init__(self, file: str, stop_at: int | None = None, seconds: float = 0.0) -> None:
        self.file, self.stop_at, self.seconds = file, stop_at, seconds

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        time.sleep(self.seconds)
        with open(f"{self.file}.{trainer.global_rank}", "ab", buffering=0) as file:
            file.write(f"{trainer.global_step} {float(outputs['loss']).hex()}\n".encode())
        trainer.should_stop |= self.stop_at is not None and trainer.global_step >= self.stop_at


def recorded(path: Path, rank: int = 0) -> dict[int, str]:
    """Losses by step as all starts recorded them; a step that was trained twice had the same both times."""
    losses: dict[int, str] = {}
    for line in Path(f"{path}.{rank}").read_text().splitlines():
        step, loss = line.split()
        assert losses.setdefault(int(step), loss) == loss, f"step {step} came out differently"
    return losses
