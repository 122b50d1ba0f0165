"""Sharded checkpoints that two ranks write while training goes on, and runs that go on from them."""

from __future__ import annotations

import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from ranks import run_ranks
from saved_runs import Fails, train
from torch import Tensor
from torch.distributed.tensor import DTensor

from onn_lightning.callbacks import RunCheckpoint
from onn_lightning.callbacks.durable_io import wait_for_writes
from onn_lightning.checkpoint import reading, shard_storage
from onn_lightning.checkpoint.complete import newest_intact_checkpoint
from onn_lightning.distributed import FSDP2Strategy

FEED_FORWARD = "trunk.blocks.0.moie.up.mu_weight"


def run(folder: Path, *callbacks: Callback, **settings: Any) -> None:
    """Train on both ranks with sharded weights; a save after every second step, in the background."""
    saving = RunCheckpoint(every_n_train_steps=2, keep_last=settings.pop("keep_last", 1))
    train(folder, *callbacks, saving, strategy=FSDP2Strategy(2), devices=2, **settings)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


class WholeWeights(Callback):
    """Keeps the weights after every step, gathered."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after[trainer.global_step] = {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
            for name, value in pl_module.state_dict().items()
        }


class SlowDisk(Callback):
    """Shards are opened for writing when a later step has been trained; what is there by then is noted."""

    def __init__(self, folder: Path, done_after: int) -> None:
        self.folder, self.done_after = folder / "checkpoints", done_after
        self.done = threading.Event()
        self.seen: list[str] | None = None

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        assert self.done.wait(60)
        return open(*arguments, **settings)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.done_after:
            dist.barrier()  # neither rank has written
            self.seen = [path.name for path in self.folder.glob("*.ckpt")]
            dist.barrier()
            self.done.set()


def save_to_a_slow_disk(rank: int, folder: str) -> None:
    """Train a step while the shards of the one before it wait for the disk."""
    root = Path(folder)
    weights, disk = WholeWeights(), SlowDisk(root, done_after=3)
    shard_storage.open = disk  # type: ignore[attr-defined]
    run(root, weights, disk, max_steps=5, keep_last=9)
    assert disk.seen == []
    assert not torch.equal(weights.after[2][FEED_FORWARD], weights.after[3][FEED_FORWARD])
    for step in (2, 4, 5):
        saved = reading.load(root / f"checkpoints/step={step}.ckpt")
        assert saved["global_step"] == step
        torch.testing.assert_close(saved["state_dict"], weights.after[step], rtol=0, atol=0)


def test_shards_hold_the_moment_of_the_save_though_the_weights_moved_on(tmp_path: Path) -> None:
    run_ranks(save_to_a_slow_disk, str(tmp_path))
    assert names(tmp_path) == ["last.ckpt", "step=2.ckpt", "step=4.ckpt", "step=5.ckpt"]
    assert (tmp_path / "checkpoints/last.ckpt").resolve().name == "step=5.ckpt"
    shards = sorted(file.name for file in (tmp_path / "checkpoints/last.ckpt").glob("*.safetensors"))
    assert shards == ["shard-00000.safetensors", "shard-00001.safetensors"]


class FullDisk(Callback):
    """Lets rank 1 write no large file after a step: it fails, or is killed by the kernel."""

    def __init__(self, after_step: int, is_deadly: bool = False) -> None:
        self.after_step, self.is_deadly = after_step, is_deadly
        self.reached = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.reached = trainer.global_step
        if trainer.global_step == self.after_step and trainer.global_rank == 1:
            wait_for_writes(trainer)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.is_deadly else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource.RLIM_INFINITY))


def fail_in_the_background_of_rank_1(rank: int, folder: str) -> None:
    """The save of step 4 fails on one rank, which the save of step 6 tells on both."""
    disk = FullDisk(after_step=3)
    with pytest.raises(OSError, match=r"cannot write '.*' \(rank 1: File too large\): make room"):
        run(Path(folder), disk, max_steps=20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert disk.reached == 5, disk.reached


def test_a_rank_that_cannot_write_in_the_background_ends_both_with_its_error(tmp_path: Path) -> None:
    run_ranks(fail_in_the_background_of_rank_1, str(tmp_path))
    assert names(tmp_path) == ["last.ckpt", "step=2.ckpt"]
    assert reading.load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 2


def die_in_the_background(rank: int, folder: str) -> None:
    run(Path(folder), FullDisk(after_step=3, is_deadly=True), max_steps=20)


def test_a_rank_that_dies_in_the_background_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"SIGXFSZ|terminated"):
        run_ranks(die_in_the_background, str(tmp_path))
    left = names(tmp_path)
    assert ".step=4.ckpt.partial" in left and left[-2:] == ["last.ckpt", "step=2.ckpt"]
    newest = newest_intact_checkpoint(tmp_path)
    assert newest is not None and reading.load(newest)["global_step"] == 2


def interrupted_and_resumed(rank: int, folder: str) -> None:
    """Six steps at once; three, a failure, and the other three with other seeds."""
    root = Path(folder)
    unbroken, resumed = WholeWeights(), WholeWeights()
    run(root / "unbroken", unbroken)
    with pytest.raises(RuntimeError, match="after which it fails"):
        run(root / "broken", Fails(3))
    run(root / "broken", resumed, resume=root / "broken/checkpoints/last.ckpt", seeds=(7, 8))
    assert sorted(resumed.after) == [4, 5, 6]
    torch.testing.assert_close(resumed.after[6], unbroken.after[6], rtol=0, atol=0)
    drawn: list[Any] = [None, None]
    dist.all_gather_object(drawn, torch.rand(3).tolist())
    assert drawn[0] != drawn[1]  # they did not share one state


def test_two_ranks_go_on_from_shards_as_an_unbroken_run(tmp_path: Path) -> None:
    run_ranks(interrupted_and_resumed, str(tmp_path))
    ends = [reading.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("unbroken", "broken")]
    for last in ends:
        assert last["global_step"] == 6
        assert len(last["callbacks"]["RandomStates"]["by_rank"]) == 2
        place = last["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        assert place["replicas"] == len(place["places"]) == 2
    for number, optimizer in enumerate(ends[0]["optimizer_states"]):
        went_on = ends[1]["optimizer_states"][number]
        torch.testing.assert_close(went_on["state"], optimizer["state"], rtol=0, atol=0)
