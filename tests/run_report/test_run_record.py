"""What a run leaves behind for its report: counts, times and starts, over resumptions and failures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from toy import ByteText, Patches, pack

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import RunRecord
from onn_lightning.nn import TrunkConfig
from onn_lightning.run_report.record import FAILED, FINISHED, INTERRUPTED, Record, load_record

MODALITIES = [ByteText(), Patches()]
ROWS = [[("patch", [0.1, -0.4, 0.3]), ("text", "ab")]], [[("text", "hello")]]
BATCH = pack(ROWS, MODALITIES)


class Stop(Callback):
    """Ends a run in the middle of it."""

    def __init__(self, at_step: int, error: BaseException) -> None:
        self.at_step, self.error = at_step, error

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self.at_step:
            raise self.error


def train(folder: Path, steps: int, *callbacks: Callback, resume: bool = False, **settings: Any) -> Record:
    torch.manual_seed(0)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        callbacks=[RunRecord(), ModelCheckpoint(folder, save_last=True, every_n_train_steps=2), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    module = OmniModule(TrunkConfig(16, 1, 2, intermediate_size=24), copy.deepcopy(MODALITIES))
    loader = DataLoader([BATCH] * 20, batch_size=None)
    trainer.fit(
        module, loader, loader, ckpt_path=str(folder / "last.ckpt") if resume else None, weights_only=True
    )
    return load_record(folder)


def test_tokens_places_times_and_parameters_are_counted(tmp_path: Path) -> None:
    record = train(tmp_path, 4, val_check_interval=2, limit_val_batches=1)
    totals = record.totals
    assert totals.tokens == {name: 4 * len(tokens.indices) for name, tokens in BATCH.modalities.items()}
    assert totals.targets["text"] == 4 * len(BATCH.modalities["text"].targets)
    assert totals.places == 4 * BATCH.document_ids.numel()
    assert set(totals.seconds) == {"forward", "backward", "optimizer", "between steps", "validation"}
    assert all(seconds > 0 for seconds in totals.seconds.values())
    start = record.starts[0]
    assert (start.state, start.first_step, start.last_step, record.max_steps) == (FINISHED, 0, 4, 4)
    assert start.versions["torch"] == torch.__version__
    module = OmniModule(TrunkConfig(16, 1, 2, intermediate_size=24), copy.deepcopy(MODALITIES))
    assert sum(record.parameters.values()) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert start.command == ()  # of pytest's command line nothing is kept


def test_a_resumed_run_adds_a_start_and_goes_on_from_the_counts_of_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        train(tmp_path, 6, Stop(3, KeyError("broken")))  # its checkpoint is of step 2
    first = load_record(tmp_path)
    assert first.totals.places == 3 * BATCH.document_ids.numel()
    assert first.starts[0].state == FAILED and first.starts[0].error == "KeyError: 'broken'"
    record = train(tmp_path, 6, resume=True)
    assert record.totals.places == 6 * BATCH.document_ids.numel()  # the step that was lost counts once
    assert [(start.first_step, start.last_step) for start in record.starts] == [(0, 3), (2, 6)]
    assert record.starts[1].state == FINISHED


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, 6, Stop(3, KeyboardInterrupt()))
    assert load_record(tmp_path).starts[0].state == INTERRUPTED


def test_a_run_that_only_tries_out_leaves_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", fast_dev_run=1, callbacks=[RunRecord()], logger=False
    )
    module = OmniModule(TrunkConfig(16, 1, 2, intermediate_size=24), copy.deepcopy(MODALITIES))
    trainer.fit(module, DataLoader([BATCH] * 2, batch_size=None))
    assert not (tmp_path / "record.json").exists()
