"""Short training runs for `scale.py`: the product's trainer, module, callbacks and strategies, on text.

Run as a program it is a child process of `scale.py`: one rank of a run, or a run whose memory is measured in
a process of its own; it prints one number.

    python benchmarks/scale_runs.py '{"measure": "seconds", "size": {...}, "strategy": "ddp", "ranks": 2}'
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.monitor import make_batch
from benchmarks.trunk import resident
from datamodules import TextModality
from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import GradientCheckpointing, PIMonitor, SkipBrokenSteps
from onn_lightning.cli.allocator import keep_freed_memory
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.nn import TrunkConfig

SECONDS_A_CHILD = 600


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape and length of a run.

    Args:
        width, layers: of the trunk; heads of 48 channels.
        rows, length: of a batch.
        steps: those that are timed.
        warm: steps before them.
        accelerator, precision: the trainer's.
    """

    width: int
    layers: int
    rows: int
    length: int
    steps: int
    warm: int = 2
    accelerator: str = "cpu"
    precision: str = "32-true"

    @property
    def trunk(self) -> TrunkConfig:
        """The trunk's shape."""
        return TrunkConfig(self.width, self.layers, max(1, self.width // 48))


class Stopwatch(Callback):
    """When each step ended, the device's work included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


class Repeated(IterableDataset[Batch]):
    """One batch over and over, the same on every rank: fixed work."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


@cache
def text() -> TextModality:
    """The modality of all runs, with tables that do not outweigh a small trunk."""
    return TextModality(max_words=8000, embedding_size=64)


def quiet() -> None:
    """What Lightning says of runs like these helps nobody."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    keep_freed_memory()


def train(
    size: Size,
    callbacks: Sequence[Callback] = (),
    strategy: str | Strategy = "auto",
    ranks: int = 1,
    module: OmniModule | None = None,
    batch: Batch | None = None,
) -> list[float]:
    """Train; seconds of every timed step, from the end of one to the end of the next.

    Args:
        size: of the run.
        callbacks, strategy, ranks: the trainer's.
        module, batch: what is trained, and on what; None: on text, of the run's size.
    """
    torch.manual_seed(0)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            accelerator=size.accelerator,
            devices=ranks,
            strategy=strategy,
            precision=size.precision,  # type: ignore[arg-type]
            max_steps=size.warm + size.steps,
            gradient_clip_val=1.0,
            logger=False,
            callbacks=[PIMonitor(), SkipBrokenSteps(), *callbacks, watch],
            enable_checkpointing=any(hasattr(callback, "best_model_path") for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = module or OmniModule(size.trunk, [text()])
        batch = batch or make_batch(text(), size.rows, size.length)
        trainer.fit(module, DataLoader(Repeated(batch), batch_size=None))
    return [after - before for before, after in pairwise(watch.ends[size.warm - 1 :])]


def launch(**request: Any) -> float:
    """A request in processes of its own, one a rank, of one thread each; what rank 0 measured.

    Args:
        request: see `answer`.
    Raises:
        RuntimeError: if a rank fails; with what it said.
    """
    ranks = request.get("ranks", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, json.dumps(request)]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
        children.append(
            subprocess.Popen(
                command, env=shared | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        said = [child.communicate(timeout=SECONDS_A_CHILD) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, errors) in zip(children, said, strict=True):
        if child.returncode:
            raise RuntimeError(f"{request}: a rank failed\n{errors[-2000:]}")
    return float(said[0][0].split()[-1])


def answer(request: dict[str, Any]) -> float:
    """Do what a request asks for.

    Args:
        request: `size`; `measure`, "seconds" (median of a step) or "memory" (MiB of peak growth while
            training); `ranks` and `strategy`, "auto", "ddp" or "fsdp2"; `checkpointing`.
    """
    size = Size(**request["size"])
    ranks = request.get("ranks", 1)
    strategies = {"auto": lambda: "auto", "ddp": DDPStrategy, "fsdp2": lambda: FSDP2Strategy(ranks)}
    callbacks = [GradientCheckpointing(request.get("checkpointing", "none"))]
    strategy = strategies[request.get("strategy", "auto")]()
    if request["measure"] == "seconds":
        return statistics.median(train(size, callbacks, strategy, ranks))
    train(dataclasses.replace(size, rows=1, length=32, steps=1), callbacks)  # loads what is loaded once
    before = resident("VmRSS")
    if size.accelerator == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train(size, callbacks, strategy, ranks)
    if size.accelerator == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (resident("VmHWM") - before) / 1024


if __name__ == "__main__":
    quiet()
    print(answer(json.loads(sys.argv[1])))
