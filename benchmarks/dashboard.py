"""What the live dashboard costs: step time with it over without it, and the training thread's stall a tick.

One training run whose steps take turns: `--every` steps with the dashboard, a tick (histograms, both
pictures, TensorBoard's images) at their beginning, then as many without it; the ratio of each pair of windows
is taken, and the median over pairs. The drawing process works during the windows with the dashboard, at low
priority, and shares the machine's cores with training: where a core is to spare the ratio is that of the
training thread alone. Data are random characters: what is learned does not matter here.

    python benchmarks/dashboard.py --json
    python benchmarks/dashboard.py --hidden 64 --layers 2 --rows 1     # short steps: the worst case
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # imported from the root, as tests and readers do

from datamodules.text import TextModality
from onn_lightning.batch import Batch, ModalityTokens
from onn_lightning.callbacks import Dashboard, PIMonitor
from onn_lightning.module import OmniModule
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import MuonAdamW

LENGTH = 256


@dataclass
class TakingTurns(Callback):
    """Hands every other window of steps to a dashboard, and times all.

    Args:
        every: steps of a window.
    """

    every: int
    with_it: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)
    tick_stalls: list[float] = field(default_factory=list)
    cpu_with_it: list[float] = field(default_factory=list)
    cpu_without: list[float] = field(default_factory=list)
    snapshot_stalls: list[float] = field(default_factory=list)
    other_stalls: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dashboard = Dashboard(every_n_steps=2 * self.every)
        self._start = self._cpu_start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.dashboard.on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        window, place = divmod(step, self.every)
        if place == 0:
            now, cpu = time.perf_counter(), time.process_time()
            if window > 2:  # the first pair starts the drawing process and warms everything
                seconds, cpu_seconds = now - self._start, cpu - self._cpu_start
                (self.without if window % 2 == 0 else self.with_it).append(seconds)
                (self.cpu_without if window % 2 == 0 else self.cpu_with_it).append(cpu_seconds)
            self._start, self._cpu_start = now, cpu
        if window % 2:
            return
        before = time.perf_counter()
        self.dashboard.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        stall = time.perf_counter() - before
        if window >= 2:
            kind = (
                self.tick_stalls
                if place == 0
                else self.snapshot_stalls
                if step % 10 == 0
                else self.other_stalls
            )
            kind.append(stall)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.dashboard.on_train_end(trainer, pl_module)


def random_batch(vocabulary: int, rows: int, generator: torch.Generator) -> Batch:
    """[rows, LENGTH] random characters, a document a row."""
    places = torch.arange(LENGTH).expand(rows, LENGTH)
    flat = torch.arange(rows * LENGTH)
    sources = flat.view(rows, LENGTH)[:, :-1].flatten()
    characters = torch.randint(vocabulary, (rows * LENGTH, 1), generator=generator)
    features = torch.cat((characters, torch.zeros(rows * LENGTH, 2, dtype=torch.int64)), dim=1)
    text = ModalityTokens(
        features=features,
        indices=flat,
        positions_2d=None,
        targets=characters[sources + 1, 0],
        source_indices=sources,
    )
    zeros = torch.zeros(rows, LENGTH, dtype=torch.int64)
    return Batch(zeros, places, zeros, {"text": text}, "random")


def measure(hidden: int, layers: int, rows: int, every: int, pairs: int) -> dict[str, Any]:
    """Train `2 * (pairs + 1)` windows and compare them."""
    torch.manual_seed(0)
    modality = TextModality(embedding_size=64)
    config = TrunkConfig(hidden, layers, 4)
    module = OmniModule(config, [modality], optimizer=MuonAdamW)
    generator = torch.Generator().manual_seed(0)
    batches = [random_batch(1000, rows, generator) for _ in range(8)]
    steps = 2 * every * (pairs + 1) + every
    turns = TakingTurns(every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_steps=steps,
            logger=[CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="", version="")],
            callbacks=[PIMonitor(), turns],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=10,
        )
        trainer.fit(module, DataLoader([batches[i % 8] for i in range(steps)], batch_size=None))
    drawing = resource.getrusage(resource.RUSAGE_CHILDREN)  # it has ended
    ratios = [a / b for a, b in zip(turns.with_it, turns.without, strict=False)]
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "neurons": sum(layer.out_features for _, layer in module.trunk.sbl_layers()),
        "step_ms_without": 1e3 * statistics.median(turns.without) / every,
        "steps_between_drawings": every,
        "step_time_ratio_median": statistics.median(ratios),
        "step_time_ratios": [round(ratio, 3) for ratio in ratios],
        "training_cpu_ratio_median": statistics.median(
            a / b for a, b in zip(turns.cpu_with_it, turns.cpu_without, strict=False)
        ),
        "drawing_cpu_seconds": (drawing.ru_utime + drawing.ru_stime) / (len(turns.tick_stalls) + 1),
        "stall_ms_tick": 1e3 * statistics.median(turns.tick_stalls),
        "stall_ms_snapshot": 1e3 * statistics.median(turns.snapshot_stalls),
        "stall_ms_other_step": 1e3 * statistics.median(turns.other_stalls),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4, help=f"of {LENGTH} tokens in a batch")
    parser.add_argument("--every", type=int, default=100, help="steps between two drawings")
    parser.add_argument("--pairs", type=int, default=5, help="windows with and without")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.hidden, arguments.layers, arguments.rows, arguments.every, arguments.pairs)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        print(f"{name:26} {value:.3f}" if isinstance(value, float) else f"{name:26} {value}")


if __name__ == "__main__":
    main()
