"""Cost of the PI monitor: step time with it over without, and what its all-reduce holds at a large size.

Notable:
- Two real training runs, with the loggers of `onn fit`, take turns in this one process (A B A B ...); the
  ratio is the median of the pairwise ones. A sample is the time of whole logging intervals, so that what is
  done at the logging rhythm is paid for in it.
- By the wall clock and in processor time of this process, which knows nothing of other work on the machine.
- The share of a step spent inside the monitor's hooks is measured as well: it needs no difference of
  two nearly equal numbers, but leaves out what Lightning does with logged figures elsewhere.

    python benchmarks/monitor.py --json
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from datamodules import TextModality
from datamodules.packing import Collator, prototype_of, split_document
from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import PIMonitor
from onn_lightning.cli.allocator import keep_freed_memory
from onn_lightning.cli.run_folder import default_loggers
from onn_lightning.document import encode_document
from onn_lightning.nn import MoIETrunk, TrunkConfig

WARM_INTERVALS, INTERVALS = 1, 2
SENTENCE = "昔者莊周夢為胡蝶，栩栩然胡蝶也。 It was the best of times, it was the worst of times. "
LARGE = TrunkConfig(hidden_size=2560, num_layers=28, num_heads=20, num_kv_heads=5)


class Stopwatch(Callback):
    """Wall clock and processor time at the end of every step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


class TimedMonitor(PIMonitor):
    """The monitor and the processor time that its hooks take."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = time.process_time()
        super().on_after_backward(trainer, pl_module)
        self.seconds += time.process_time() - start

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        start = time.process_time()
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.seconds += time.process_time() - start


def make_batch(modality: TextModality, rows: int, length: int) -> Batch:
    """Rows full of text."""
    text = SENTENCE * (length // len(SENTENCE) + 1)
    segments = encode_document([("text", text)], {"text": modality})
    pieces = [[split_document(segments, length)[0]] for _ in range(rows)]
    prototype = prototype_of(segments[1])  # the first one is the opening symbol, which has no targets
    return Collator({"text": prototype}, ["text"], length, rows)(pieces)


def run(
    config: TrunkConfig, modality: TextModality, batch: Batch, every: int, monitor: TimedMonitor | None
) -> tuple[float, float, float]:
    """Seconds a step by the wall clock and by the processor, and those in the monitor's hooks."""
    torch.manual_seed(0)
    steps = every * (WARM_INTERVALS + INTERVALS)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_steps=steps,
            log_every_n_steps=every,
            logger=default_loggers(Path(folder)),
            callbacks=[watch] if monitor is None else [monitor, watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(OmniModule(config, [modality]), DataLoader([batch] * steps, batch_size=None))
    marks = watch.ends[WARM_INTERVALS * every - 1 :: every]
    spans = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(marks)]
    wall, cpu = (statistics.median(values) / every for values in zip(*spans, strict=True))
    return wall, cpu, 0.0 if monitor is None else monitor.seconds / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--every", type=int, default=10, help="steps between two loggings")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    keep_freed_memory()
    modality = TextModality(embedding_size=64)
    config = TrunkConfig(arguments.width, arguments.layers, max(1, arguments.width // 48))
    batch = make_batch(modality, arguments.rows, arguments.length)
    pairs = [
        (
            run(config, modality, batch, arguments.every, TimedMonitor()),
            run(config, modality, batch, arguments.every, None),
        )
        for _ in range(arguments.repeats)
    ]
    with torch.device("meta"):
        large = MoIETrunk(LARGE)
    neurons = sum(large.block_sizes)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "tokens_per_step": arguments.rows * arguments.length,
        "steps_between_loggings": arguments.every,
        "seconds_a_step_without": statistics.median(without[0] for _, without in pairs),
        "with_over_without_wall": statistics.median(a[0] / b[0] for a, b in pairs),
        "with_over_without_processor": statistics.median(a[1] / b[1] for a, b in pairs),
        "share_of_step_in_hooks": statistics.median(a[2] / a[1] for a, _ in pairs),
        "milliseconds_in_hooks": statistics.median(1e3 * a[2] for a, _ in pairs),
        "large_parameters": sum(weight.numel() for weight in large.parameters()) / 1e9,
        "large_neurons": neurons,
        "large_all_reduce_megabytes": 2 * 4 * neurons / 1e6,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:32} {value:.4f}" if isinstance(value, float) else f"{name:32} {value}")


if __name__ == "__main__":
    main()
