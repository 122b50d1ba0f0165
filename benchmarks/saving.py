"""How long training stands still for a checkpoint: written at once, and in the background from a copy.

Both ways save the same state, in turn; medians of all rounds but the first. Beside them the rate of training
steps while a file is being written, as a ratio of the rate without any.

    python benchmarks/saving.py --megabytes 500 --rounds 7 --folder /some/disk
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onn_lightning.checkpoint import writing
from onn_lightning.checkpoint.background import BackgroundWriter
from onn_lightning.checkpoint.snapshot import snapshot

WIDTH = 1024
ROWS = 256


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What of a run is large."""
    return {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}


def steps_until(done: Callable[[], bool], step: Callable[[], None], least: int) -> float:
    """Steps a second until something is done, `least` at least."""
    began, count = time.perf_counter(), 0
    while count < least or not done():
        step()
        count += 1
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500.0, help="of the file: weights and two moments")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk that is measured (default: TMPDIR)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()

    layers = max(1, round(given.megabytes * 1e6 / 12 / WIDTH**2))
    module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers))).to(given.device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    rows = torch.randn(ROWS, WIDTH, device=given.device)

    def step() -> None:
        module(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if given.device == "cuda":
            torch.cuda.synchronize()

    figures: defaultdict[str, list[float]] = defaultdict(list)
    writer = BackgroundWriter()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder, "step=1.ckpt")
        step()
        for _ in range(given.rounds + 1):
            figures["steps/s"].append(steps_until(lambda: True, step, 5))
            began = time.perf_counter()
            writing.write(state_of(module, optimizer), path)
            figures["at once: stands still, s"].append(time.perf_counter() - began)
            began = time.perf_counter()
            copied = snapshot(state_of(module, optimizer))
            figures["in the background: stands still, s"].append(time.perf_counter() - began)
            written = threading.Event()
            writer.start(partial(write, copied, path, written))
            rate = steps_until(written.is_set, step, 1)
            figures["in the background: under way, s"].append(time.perf_counter() - began)
            figures["steps/s while it is under way"].append(rate)
            writer.wait()
            del copied
        megabytes = path.stat().st_size / 1e6
    medians = {name: statistics.median(values[1:]) for name, values in figures.items()}
    print(f"{megabytes:.0f} MB, {given.device}, {torch.get_num_threads()} threads, medians of {given.rounds}")
    for name, value in medians.items():
        print(f"{name:36} {value:8.3f}")
    stands = medians["in the background: stands still, s"] / medians["at once: stands still, s"]
    print(f"{'stands still, background / at once':36} {stands:8.3f}")
    slowed = medians["steps/s while it is under way"] / medians["steps/s"]
    print(f"{'step rate, under way / alone':36} {slowed:8.3f}")


def write(state: dict[str, Any], path: Path, written: threading.Event, stop: threading.Event) -> None:
    """A job of the writer."""
    writing.write(state, path, stop)
    written.set()


if __name__ == "__main__":
    main()
