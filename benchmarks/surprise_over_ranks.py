"""Cost of one gate loss for all ranks: step time with S added up over two of them, over that without.

Notable:
- Both kinds of steps take turns on the same network (A B A B ...), data parallel over two processes; the
  ratio is the median of the pairwise ones. Every SBL adds one all-reduce of N numbers to its backward pass.
- On a CPU the ranks talk through gloo, and whoever comes first waits: other work on the machine shows.

    python benchmarks/surprise_over_ranks.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from onn_lightning.distributed import DataParallel
from onn_lightning.nn import MoIETrunk, TrunkConfig

RANKS, WARM_PAIRS = 2, 3


def measure(rank: int, arguments: argparse.Namespace) -> None:
    """Time the steps; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    group = dist.distributed_c10d._get_default_group()
    torch.manual_seed(0)
    trunk = MoIETrunk(TrunkConfig(arguments.width, arguments.layers, max(1, arguments.width // 64)))
    parallel = DistributedDataParallel(trunk)
    x = torch.randn(1, arguments.tokens, arguments.width)
    positions = torch.arange(arguments.tokens)[None]

    def seconds(sum_squares: Any) -> float:
        for _, layer in trunk.sbl_layers():
            layer.sum_squares = sum_squares
        dist.barrier()
        start = time.perf_counter()
        output = parallel(x, positions)
        (output.hidden.square().mean() + 0.01 * output.auxiliary.gate_handle).backward()
        parallel.zero_grad()
        dist.barrier()
        return time.perf_counter() - start

    over_all = DataParallel(RANKS, group.group_name).sum
    pairs = [(seconds(over_all), seconds(None)) for _ in range(WARM_PAIRS + arguments.pairs)][WARM_PAIRS:]
    if rank == 0:
        result = {
            "machine": f"{platform.machine()}, {RANKS} ranks of 1 thread, torch {torch.__version__}",
            "width": arguments.width,
            "layers": arguments.layers,
            "tokens_of_a_rank": arguments.tokens,
            "all_reduces_a_step": 4 * arguments.layers,
            "seconds_a_step_per_rank": statistics.median(apart for _, apart in pairs),
            "global_over_per_rank": statistics.median(whole / apart for whole, apart in pairs),
        }
        lines = [f"{key}: {value}" for key, value in result.items()]
        print(json.dumps(result) if arguments.json else "\n".join(lines))
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="of each rank")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    mp.start_processes(measure, (arguments,), nprocs=RANKS, start_method="spawn")


if __name__ == "__main__":
    main()
