"""Real ranks for tests, in the environment that torchrun gives them; what fails in one fails the test.

Notable:
- They are forked from a server that has torch and Lightning imported already: starting one takes a fraction
  of a second instead of several.
- Unlike spawned processes, forked ones end without the interpreter's shutdown, in which gloo's threads may
  outlive their owner: a test whose results were all right would abort now and then.
- On a busy machine torch 2.13 crashes in about one of a hundred runs of a thousand small collectives, in a
  thread of gloo: small pieces of its memory were written to after they were freed. It does so in ranks that
  run no native code but torch's. pytest runs such a test once more (`pyproject.toml`) and lists it under
  RERUN; a fault of ours would crash it again.
- A rank that crashes, or that is not done after `MOST_SECONDS`, says where each of its threads was.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOADED = ["torch", "lightning.pytorch", "torch.distributed.fsdp", "onn_lightning.cli.lightning_cli"]
MOST_SECONDS = 300


def torchrun_environment(count: int) -> dict[str, str]:
    """What torchrun tells all of `count` ranks of one machine, at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(count),
        }


def run_ranks(function: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Call `function(rank, *arguments)` in as many processes as there are ranks; one thread each.

    Args:
        function: of a module that can be imported.
        arguments: the same for all ranks.
        count: ranks.
    Raises:
        ProcessRaisedException: if a rank fails; with its traceback.
        ProcessExitedException: if a rank crashes or hangs.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    given = (function, list(sys.path), torchrun_environment(count), arguments)
    mp.start_processes(_rank, given, nprocs=count, start_method="forkserver")


def _rank(
    rank: int,
    function: Callable[..., None],
    path: list[str],
    environment: dict[str, str],
    arguments: tuple[Any, ...],
) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
    sys.path[:] = path
    os.environ.pop("PL_GLOBAL_SEED", None)  # of an `onn` in the process of the tests: one seed for all ranks
    os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    function(rank, *arguments)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
