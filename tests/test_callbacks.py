"""Callbacks on real runs of a small model: the last checkpoint, the report."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from toy import ByteText, Patches, pack

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import Dashboard, PIMonitor, RunCheckpoint, RunReport
from onn_lightning.nn import TrunkConfig

MODALITIES = [ByteText(), Patches()]


def batches(count: int) -> list[Batch]:
    rows = [[("patch", [0.1, -0.4, 0.3]), ("text", "ab")]], [[("text", "hello")]]
    return [pack(rows, MODALITIES) for _ in range(count)]


def train(folder: Path, steps: int, *callbacks: Callback) -> Trainer:
    torch.manual_seed(0)
    module = OmniModule(TrunkConfig(16, 1, 2, intermediate_size=24), copy.deepcopy(MODALITIES))
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        logger=CSVLogger(folder, name="csv"),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in callbacks),
        log_every_n_steps=2,
    )
    trainer.fit(module, DataLoader(batches(steps), batch_size=None))
    return trainer


@pytest.mark.parametrize("steps", [4, 6, 7])
def test_the_last_checkpoint_holds_the_end_of_training(tmp_path: Path, steps: int) -> None:
    """Also where training ends between two of the rhythm's checkpoints."""
    train(tmp_path, steps, RunCheckpoint(tmp_path, every_n_train_steps=4))
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == steps


def test_the_report_says_where_the_charts_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, 4, PIMonitor(), Dashboard(), RunReport(answers=0))
    said = capsys.readouterr().out.replace("\n", "")  # long paths are broken over lines
    for name in ("core_metrics.png", "neurons.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / name) in said


def test_the_report_of_a_run_without_charts_names_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 2, RunReport(answers=0))
    said = capsys.readouterr().out
    assert "run folder" in said
    assert "charts" not in said and "tensorboard" not in said
