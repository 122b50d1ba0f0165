"""A save that fails leaves the checkpoint before it, and the command says why in one line."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_standins import Outcome
from lightning.pytorch import Callback, Trainer

from onn_lightning.checkpoint.complete import newest_intact_checkpoint

Onn = Callable[..., Outcome]
Write = Callable[..., str]

EVERY_STEP = {
    "class_path": "onn_lightning.callbacks.RunCheckpoint",
    "init_args": {"every_n_train_steps": 1},
}
REPORT = {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}}
CHANGES = {"trainer.logger": False, "trainer.callbacks": [EVERY_STEP, REPORT]}


class InterruptsLastSave(Callback):
    """Receives Ctrl-C in a step, and again in the middle of the save that follows."""

    def __init__(self, at_step: int) -> None:
        self.at_step, self.asked = at_step, False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.at_step:
            self.asked = True
            signal.raise_signal(signal.SIGINT)

    def state_dict(self) -> dict[str, Any]:
        return {"state": ReceivesSignal() if self.asked else None}


class ReceivesSignal:
    """Is interrupted when it is pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        signal.raise_signal(signal.SIGINT)
        return dict, ()


def step_of(folder: Path) -> int:
    path = newest_intact_checkpoint(folder)
    assert path is not None
    return int(torch.load(path, weights_only=True)["global_step"])


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    config, run = write_config(changes=CHANGES), folder / "runs/tiny"
    assert onn("fit", "--config", config).code == 0
    before = {path.name: path.read_bytes() for path in run.glob("checkpoints/*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last.ckpt"]) - 1000, limits[1]))
    try:
        outcome = onn("fit", "--config", config, "--resume", "--trainer.max_steps=8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 1
    assert "File too large): make room" in outcome.error_line
    assert {path.name: path.read_bytes() for path in run.glob("checkpoints/*")} == before
    assert not list(run.glob("checkpoints/.*"))
    assert onn("fit", "--config", config, "--resume", "--trainer.max_steps=8").code == 0
    assert step_of(run) == 8


def test_a_folder_that_cannot_be_written_ends_in_one_line(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    (folder / "runs/tiny").mkdir(parents=True)
    (folder / "runs/tiny/checkpoints").write_text("in the way")
    outcome = onn("fit", "--config", write_config(changes=CHANGES))
    assert outcome.code == 1
    assert "runs/tiny/checkpoints" in outcome.error_line


def test_a_folder_without_permission_ends_in_one_line(onn: Onn, write_config: Write, folder: Path) -> None:
    checkpoints = folder / "runs/tiny/checkpoints"
    checkpoints.mkdir(parents=True)
    checkpoints.chmod(0o555)
    if os.access(checkpoints, os.W_OK):
        pytest.skip("this user may write anywhere")
    try:
        outcome = onn("fit", "--config", write_config(changes=CHANGES))
    finally:
        checkpoints.chmod(0o755)
    assert outcome.code == 1
    assert "Permission denied" in outcome.error_line


def test_a_second_interrupt_during_the_save_leaves_the_checkpoint_before(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    config, run = write_config(changes={"trainer.logger": False}), folder / "runs/tiny"
    assert onn("fit", "--config", config).code == 0
    interrupts = {"class_path": f"{__name__}.InterruptsLastSave", "init_args": {"at_step": 6}}
    changes = {"trainer.logger": False, "trainer.callbacks": [interrupts, REPORT], "trainer.max_steps": 8}
    assert onn("fit", "--config", write_config("b.yaml", changes), "--run=tiny", "--resume").code == 130
    assert step_of(run) == 4
    assert not list(run.glob("checkpoints/.*"))
    assert onn("fit", "--config", config, "--resume", "--trainer.max_steps=8").code == 0
    assert step_of(run) == 8


def test_a_flipped_byte_in_the_newest_checkpoint_is_found_and_the_one_before_it_resumed(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    every_step = {"every_n_train_steps": 1, "keep_last": 9}
    callbacks = [EVERY_STEP | {"init_args": every_step}, REPORT]
    config, run = write_config(changes=CHANGES | {"trainer.callbacks": callbacks}), folder / "runs/tiny"
    assert onn("fit", "--config", config).code == 0
    newest = newest_intact_checkpoint(run)
    assert newest is not None and step_of(run) == 4
    damage(newest)
    assert step_of(run) == 3
    outcome = onn("test", "--config", config, "--ckpt_path", str(newest))
    assert outcome.code == 1
    assert "step=4.ckpt: damaged, the tensor state_dict.heads.sensor.read.weight is not" in outcome.error_line
    outcome = onn("fit", "--config", config, "--resume", "--trainer.max_steps=5")
    assert outcome.code == 0 and step_of(run) == 5
    for path in run.glob("checkpoints/*"):
        if not path.is_symlink():  # step 4 was written anew on the way to step 5
            damage(path)
    outcome = onn("fit", "--config", config, "--resume")
    assert outcome.code == 2
    assert "every checkpoint in runs/tiny/checkpoints is damaged" in outcome.error_line


def damage(path: Path) -> None:
    weights = torch.load(path, weights_only=True)["state_dict"]["heads.sensor.read.weight"]
    written, other = weights.numpy().tobytes(), weights.neg().numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(written, other))
