"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from ranks import PRELOADED
from saved_runs import Fails, Weights, train

from datamodules.prepared import durable
from onn_lightning.callbacks import RunCheckpoint
from onn_lightning.checkpoint import writing
from onn_lightning.checkpoint.background import BackgroundWriter
from onn_lightning.checkpoint.complete import newest_intact_checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


class SlowDisk:
    """Opens a file for writing when it is told so, or after a second at most: nothing is written before."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.under_way = self.most = 0

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.done.wait(1.0)
        self.under_way -= 1
        return open(*arguments, **settings)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(durable, "open", disk, raising=False)
    yield disk
    disk.done.set()


class Watches(Callback):
    """Notes which checkpoints there are after each step, and lets the disk finish after one of them."""

    def __init__(self, folder: Path, disk: SlowDisk, done_after: int) -> None:
        self.folder, self.disk, self.done_after = folder / "checkpoints", disk, done_after
        self.seen: dict[int, list[str]] = {}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen[trainer.global_step] = sorted(path.name for path in self.folder.glob("*.ckpt"))
        if trainer.global_step == self.done_after:
            self.disk.done.set()


def test_training_goes_on_while_the_disk_is_slow_and_the_file_holds_the_moment_of_the_save(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    watches, weights = Watches(tmp_path, slow_disk, done_after=3), Weights()
    train(tmp_path, watches, weights, RunCheckpoint(every_n_train_steps=2, keep_last=9), max_steps=5)
    assert watches.seen[2] == watches.seen[3] == []  # a step was trained, and nothing written yet
    assert names(tmp_path) == ["last.ckpt", "step=2.ckpt", "step=4.ckpt", "step=5.ckpt"]
    for step in (2, 4, 5):
        saved = torch.load(tmp_path / f"checkpoints/step={step}.ckpt", weights_only=True)
        assert saved["global_step"] == step
        for name, value in weights.after[step].items():
            assert torch.equal(saved["state_dict"][name], value), name
    assert not torch.equal(*(weights.after[step]["trunk.blocks.0.moie.up.mu_weight"] for step in (2, 3)))
    assert step_of(tmp_path / "checkpoints/last.ckpt") == 5


def test_a_save_waits_for_the_one_before_it(tmp_path: Path, slow_disk: SlowDisk) -> None:
    threading.Timer(0.5, slow_disk.done.set).start()
    train(tmp_path, RunCheckpoint(every_n_train_steps=1), max_steps=3)
    assert slow_disk.most == 1
    assert names(tmp_path) == ["last.ckpt", "step=3.ckpt"]


def test_an_error_in_training_waits_for_the_write_and_saves_its_own_step(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    threading.Timer(0.5, slow_disk.done.set).start()
    with pytest.raises(RuntimeError, match="after which it fails"):
        train(tmp_path, Fails(3), RunCheckpoint(every_n_train_steps=2, keep_last=2))
    assert names(tmp_path) == ["last.ckpt", "step=2.ckpt", "step=3.ckpt"]


def test_a_full_disk_is_told_at_the_next_save_and_leaves_what_was_there(tmp_path: Path) -> None:
    train(tmp_path, RunCheckpoint(every_n_train_steps=2), max_steps=2)
    first = tmp_path / "checkpoints/step=2.ckpt"
    whole, weights = first.read_bytes(), Weights()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write '.*' \(File too large\): make room"):
            train(tmp_path, weights, RunCheckpoint(every_n_train_steps=2), resume=first, max_steps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert max(weights.after) == 6  # the write of step 4 failed in the background, which step 6 learned
    assert names(tmp_path) == ["last.ckpt", "step=2.ckpt"]
    assert first.read_bytes() == whole
    assert step_of(tmp_path / "checkpoints/last.ckpt") == 2


def die_in_the_second_save(folder: str, path: list[str]) -> None:
    """Train, and be killed when the second file was written and is to be flushed."""
    sys.path[:] = path
    flushed: list[int] = []

    def flush(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) == 4:  # file, folder for its name, folder for the pointer, file
            os.kill(os.getpid(), signal.SIGKILL)

    durable.os.fsync = flush
    train(Path(folder), RunCheckpoint(every_n_train_steps=2), max_steps=50)


def test_a_kill_in_the_middle_of_a_background_write_leaves_the_one_before(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=die_in_the_second_save, args=(str(tmp_path), list(sys.path)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == [".step=4.ckpt.partial", "last.ckpt", "step=2.ckpt"]
    newest = newest_intact_checkpoint(tmp_path)
    assert newest is not None and step_of(newest) == step_of(newest.with_name("last.ckpt")) == 2
    train(tmp_path, RunCheckpoint(every_n_train_steps=9), resume=newest, max_steps=3)
    assert names(tmp_path) == ["last.ckpt", "step=3.ckpt"]  # what was left is gone


def test_ctrl_c_while_waiting_gives_the_write_up(tmp_path: Path) -> None:
    writing.write({"number": 1}, tmp_path / "a.ckpt")
    writer, begun = BackgroundWriter(), threading.Event()

    class Endless:
        def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
            begun.set()
            while not writer._stop.is_set():
                begun.wait(0.01)
            return dict, ()

    state = {"weights": torch.zeros(1_000_000), "endless": Endless(), "more": torch.zeros(1_000_000)}
    writer.start(lambda stop: writing.write(state, tmp_path / "a.ckpt", stop))
    begun.wait()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            writer.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
