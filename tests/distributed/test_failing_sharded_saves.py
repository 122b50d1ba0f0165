"""A rank that cannot write: all ranks raise the same error, and the checkpoint of before stays."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from onn_lightning.checkpoint.complete import newest_intact_checkpoint
from onn_lightning.checkpoint.reading import load
from onn_lightning.checkpoint.sharded_saving import save_sharded

ROWS = 4096


def save(path: Path, value: float) -> None:
    mesh = init_device_mesh("cpu", (2,))
    table = distribute_tensor(torch.full((ROWS, 8), value), mesh, [Shard(0)])
    save_sharded({"state_dict": {"table": table}, "value": value}, path)


def fail_on_rank_1(rank: int, folder: str) -> None:
    """Save, save again with a limit on the size of rank 1's files, and again without."""
    dist.init_process_group("gloo")
    path = Path(folder, "step=1.ckpt")
    save(path, 1.0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match=r"rank 1: File too large.*make room"):
        save(path, 2.0)
    dist.barrier()
    if rank == 0:
        assert [file.name for file in Path(folder).iterdir()] == [path.name]
        assert load(path)["value"] == 1.0
    dist.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(path, 3.0)


def test_a_rank_that_cannot_write_fails_all_of_them_alike(tmp_path: Path) -> None:
    run_ranks(fail_on_rank_1, str(tmp_path))
    got = load(tmp_path / "step=1.ckpt")
    assert got["value"] == 3.0
    torch.testing.assert_close(got["state_dict"]["table"], torch.full((ROWS, 8), 3.0), rtol=0, atol=0)
    shards = sorted(file.name for file in (tmp_path / "step=1.ckpt").glob("*.safetensors"))
    assert shards == ["shard-00000.safetensors", "shard-00001.safetensors"]


def die_on_rank_1(rank: int, folder: str) -> None:
    """Rank 1 is killed by the kernel while it writes."""
    dist.init_process_group("gloo")
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    save(Path(folder, "step=1.ckpt"), 4.0)


def test_a_rank_that_dies_while_writing_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    save_sharded({"state_dict": {"table": torch.ones(3)}, "value": 1.0}, tmp_path / "step=1.ckpt")
    with pytest.raises(Exception, match=r"SIGXFSZ|terminated"):
        run_ranks(die_on_rank_1, str(tmp_path))
    assert load(tmp_path / "step=1.ckpt")["value"] == 1.0
    save_sharded({"state_dict": {"table": torch.ones(3)}, "value": 5.0}, tmp_path / "step=2.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step=1.ckpt", "step=2.ckpt"]


def save_until_killed(rank: int, folder: str, killed_rank: int, seconds: float) -> None:
    """Save again and again, in turns under two names, until one rank kills itself."""
    dist.init_process_group("gloo")
    checkpoints = Path(folder, "checkpoints")
    begin = newest_value(Path(folder))
    for count in itertools.count(1):
        if rank == killed_rank and count == 2:  # one is complete
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        save(checkpoints / f"step={int(begin + count) % 2}.ckpt", begin + count)


def newest_value(folder: Path) -> float:
    newest = newest_intact_checkpoint(folder)
    return 0.0 if newest is None else float(load(newest)["value"])


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_whole_checkpoint(tmp_path: Path) -> None:
    moments = random.Random(0)
    reached = 0.0
    for number in range(6):
        with pytest.raises(Exception, match=r"SIGKILL|terminated"):
            run_ranks(save_until_killed, str(tmp_path), number % 2, moments.uniform(0.0, 0.05))
        assert newest_value(tmp_path) > reached
        reached = newest_value(tmp_path)
        for path in (tmp_path / "checkpoints").glob("*.ckpt"):
            load(path)  # what is there under a name is whole
