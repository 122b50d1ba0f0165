"""Which checkpoints a run keeps: on the way, at its end, and after it was killed and resumed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from saved_runs import train

from onn_lightning.callbacks import RunCheckpoint
from onn_lightning.checkpoint.retention import Saved

VALIDATED = {"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 0}


class Scores(Callback):
    """Logs a figure of its own at every validation."""

    def __init__(self, *by_step: float) -> None:
        self.by_step = by_step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/score", torch.tensor(self.by_step[trainer.global_step - 1]))


class HalfHours(RunCheckpoint):
    """Whose steps take half an hour each."""

    trainer: Trainer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.trainer = trainer

    def _seconds(self) -> float:
        return self.trainer.global_step * 1800.0


def steps(folder: Path) -> list[int]:
    """Those whose checkpoints are there, `last.ckpt` being a link to the newest."""
    checkpoints = folder / "checkpoints"
    found = sorted(int(path.stem.removeprefix("step=")) for path in checkpoints.glob("step=?.ckpt"))
    assert os.readlink(checkpoints / "last.ckpt") == f"step={found[-1]}.ckpt"
    return found


@pytest.mark.parametrize("in_background", [True, False])
def test_the_newest_stay_and_the_end_of_training_is_among_them(tmp_path: Path, in_background: bool) -> None:
    saving = RunCheckpoint(every_n_train_steps=2, keep_last=2, in_background=in_background)
    train(tmp_path, saving, max_steps=7)
    assert steps(tmp_path) == [6, 7]
    assert saving.last_model_path == str(tmp_path / "checkpoints/last.ckpt")


def test_the_best_stay_across_a_resumption(tmp_path: Path) -> None:
    def saving() -> RunCheckpoint:
        return RunCheckpoint(every_n_train_steps=2, keep_best=2, monitor="val/score", mode="max")

    scores = Scores(0.1, 0.9, 0.2, 0.3, 0.8, 0.1, 0.2, 0.1)
    first = saving()
    train(tmp_path, scores, first, max_steps=4, **VALIDATED)
    assert steps(tmp_path) == [2, 3, 4]  # the score of step 4 is known once it is saved
    last = tmp_path / "checkpoints/last.ckpt"
    second = saving()
    train(tmp_path, scores, second, max_steps=7, resume=last, **VALIDATED)
    assert steps(tmp_path) == [2, 5, 7]
    assert second.best_model_path == str(tmp_path / "checkpoints/step=2.ckpt")


def test_one_stays_for_every_so_many_hours(tmp_path: Path) -> None:
    train(tmp_path, HalfHours(every_n_train_steps=1, keep_every_hours=1.0), max_steps=7)
    assert steps(tmp_path) == [2, 4, 6, 7]


def test_a_resumed_run_takes_over_its_own_files_and_touches_no_others(tmp_path: Path) -> None:
    train(tmp_path, RunCheckpoint(every_n_train_steps=1), max_steps=3)
    checkpoints = tmp_path / "checkpoints"
    newest = checkpoints / "step=3.ckpt"
    others = ["last-before.ckpt", "mine.ckpt", "step=1-grown.ckpt", "step=1.ckpt.bak", "step=x.ckpt"]
    for number, name in enumerate(("epoch=0-step=1.ckpt", "step=2.ckpt", *others)):
        shutil.copy(newest, checkpoints / name)
        os.utime(checkpoints / name, (1000 + number, 1000 + number))
    for name in (".step=2.ckpt.partial", ".mine.ckpt.partial"):
        (checkpoints / name).write_text("of a process that was killed")
    (checkpoints / ".step=1.ckpt.partial").mkdir()
    train(tmp_path, RunCheckpoint(every_n_train_steps=1, keep_last=2), resume=newest, max_steps=4)
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(
        [*others, ".mine.ckpt.partial", "last.ckpt", "step=3.ckpt", "step=4.ckpt"]
    )


def test_a_run_that_begins_with_the_weights_of_another_leaves_that_ones_files(tmp_path: Path) -> None:
    train(tmp_path / "a", RunCheckpoint(every_n_train_steps=1), max_steps=3)
    saving = RunCheckpoint(every_n_train_steps=1)
    train(tmp_path / "b", saving, resume=tmp_path / "a/checkpoints/last.ckpt", max_steps=5)
    assert (steps(tmp_path / "a"), steps(tmp_path / "b")) == ([3], [5])
    assert [(one.name, one.step) for one in saving._saved] == [("step=5.ckpt", 5)]


def test_the_state_tells_the_time_of_training_over_all_starts(tmp_path: Path) -> None:
    train(tmp_path, RunCheckpoint(every_n_train_steps=1), max_steps=2)
    last = tmp_path / "checkpoints/last.ckpt"
    state: dict[str, Any] = torch.load(last, weights_only=True)["callbacks"]["RunCheckpoint"]
    again = RunCheckpoint()
    again.load_state_dict(state)
    assert 0 < state["seconds"] <= again.state_dict()["seconds"]
    assert [Saved(**one).name for one in state["saved"]] == ["step=2.ckpt"]


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    for given, said in (
        ({"keep_best": 1}, "both or none"),
        ({"monitor": "val/score"}, "both or none"),
        ({"every_n_train_steps": 0}, "every_n_train_steps is 0"),
        ({"keep_last": 0}, "keep_last is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            RunCheckpoint(**given)
    unknown = RunCheckpoint(keep_best=1, monitor="val/scor")
    with pytest.raises(MisconfigurationException, match="no figure 'val/scor' was logged"):
        train(tmp_path, Scores(1.0), unknown, max_steps=1, **VALIDATED)
