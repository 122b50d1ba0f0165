"""Sharded checkpoints: time to save over that of one gathered file, and the memory of `onn export`.

Two ranks (gloo, CPU, one thread each) hold halves of the same tensors; both ways save in turn, flushed to
the disk, and the median of the ratios of all rounds but the first is taken. Of a save in the background
training waits for the copy of its shards, which is timed too. Then one process exports the sharded
checkpoint; its anonymous memory (mapped files do not count) is sampled every 5 ms.

    python benchmarks/sharded_checkpoints.py --megabytes 512 --json
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # imported from the root, as tests do

from onn_lightning.checkpoint import description, writing
from onn_lightning.checkpoint.exported import export
from onn_lightning.checkpoint.sharded import divide
from onn_lightning.checkpoint.sharded_saving import save_sharded
from onn_lightning.nn import TrunkConfig

RANKS = 2
ROWS, COLUMNS = 2048, 1024  # of a tensor: 8 MiB of float32


def save_in_turns(rank: int, port: int, folder: str, tensors: int, rounds: int) -> None:
    """One rank: save both ways, and copy, `rounds` times and once before."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    state = {
        f"tensor{number}": DTensor.from_local(torch.randn(ROWS // RANKS, COLUMNS), mesh, [Shard(0)])
        for number in range(tensors)
    }
    made = {description.KEY: description.describe(TrunkConfig(), [])}
    seconds: dict[str, list[float]] = {"sharded": [], "one file": [], "copy": []}
    for _ in range(rounds + 1):
        for way, times in seconds.items():
            dist.barrier()
            began = time.perf_counter()
            if way == "sharded":
                save_sharded({"state_dict": state, **made}, Path(folder, "sharded.ckpt"))
            elif way == "copy":
                divide({"state_dict": state, **made}).copied()
            else:
                whole = {name: tensor.full_tensor() for name, tensor in state.items()}
                if rank == 0:
                    writing.write({"state_dict": whole, **made}, Path(folder, "file.ckpt"))
                del whole
            dist.barrier()
            times.append(time.perf_counter() - began)
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def memory_of_export(path: Path, folder: Path) -> float:
    """Anonymous memory that an export takes in this process, in MiB."""
    before, peak, done = _anonymous(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    export(path, folder, 5e9)
    done.set()
    watcher.join()
    return peak - before


def _anonymous() -> float:
    with suppress(OSError):
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        if found is not None:
            return int(found[1]) / 1024
    return 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=256.0, help="of all tensors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk that is measured (default: TMPDIR)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    tensors = max(1, round(given.megabytes * 1e6 / (4 * ROWS * COLUMNS)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        mp.spawn(save_in_turns, (port, name, tensors, given.rounds), nprocs=RANKS)
        seconds = json.loads((folder / "seconds.json").read_text())
        memory = {
            form: memory_of_export(folder / f"{form}.ckpt", folder / f"out-{form}")
            for form in ("file", "sharded")
        }
    waits = list(zip(seconds["copy"], seconds["sharded"], strict=True))[1:]
    pairs = list(zip(seconds["sharded"], seconds["one file"], strict=True))[1:]
    figures = {
        "megabytes": tensors * 4 * ROWS * COLUMNS / 1e6,
        "seconds to save, sharded": statistics.median(seconds["sharded"][1:]),
        "seconds to save, one file": statistics.median(seconds["one file"][1:]),
        "time to save, sharded / one file": statistics.median(a / b for a, b in pairs),
        "training waits, in background / not": statistics.median(a / b for a, b in waits),
        "export of shards, anonymous MiB": memory["sharded"],
        "export of a file, anonymous MiB": memory["file"],
        "largest tensor, MiB": 4 * ROWS * COLUMNS / 2**20,
    }
    if given.json:
        print(json.dumps(figures))
    else:
        for figure, value in figures.items():
            print(f"{figure:36} {value:10.3f}")


if __name__ == "__main__":
    main()
