"""Speed and memory of real runs: what is logged, whose it is, and what the progress bar shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from monitored import PARTS, make_module, watch
from ranks import run_ranks
from torch.utils.data import DataLoader

from onn_lightning.callbacks import PIMonitor, RunProgressBar, Throughput
from onn_lightning.callbacks.peak_memory import peak_memory
from onn_lightning.flops import training_flops

BALLAST = 300_000_000
"""Bytes that one rank needs more than the other."""


def test_speed_and_memory_are_logged_at_the_rhythm_of_the_trainer(tmp_path: Path) -> None:
    kept, _ = watch(PARTS, tmp_path, callbacks=[Throughput()], log_every_n_steps=2)
    before, figures = kept.logged[0], kept.logged[1]
    assert "train/mfu" not in before
    assert figures["train/tokens_per_second"] > 0
    assert 0 < figures["train/mfu"] < 1
    assert 0 <= figures["train/data_wait"] <= 1
    assert 0.05 < figures["train/memory_gb"] < 50


def test_what_checkpointing_computes_twice_counts_once() -> None:
    flops = []
    for mode in ("none", "block"):
        module = make_module()
        module.trunk.checkpointing = mode
        flops.append(training_flops(module.trunk, module.embedders, module.heads, PARTS[0]))
    assert flops[0] == flops[1] > 0


def test_under_accumulation_a_step_is_logged_once(tmp_path: Path) -> None:
    kept, _ = watch(PARTS, tmp_path, callbacks=[Throughput()], accumulate_grad_batches=2, log_every_n_steps=1)
    logged = ["train/mfu" in figures for figures in kept.logged]
    assert logged[:2] == [False, True]


class _Keep(Callback):
    """Keeps what the progress bar shows."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        bar = trainer.progress_bar_callback
        assert isinstance(bar, RunProgressBar)
        self.shown = bar.get_metrics(trainer, pl_module)


def test_the_bar_shows_health_speed_and_memory_in_few_words(tmp_path: Path) -> None:
    keep = _Keep()
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[PIMonitor(), Throughput(), RunProgressBar(), keep],
    )
    trainer.fit(make_module(), DataLoader(PARTS, batch_size=None))
    assert list(keep.shown) == ["loss", "pi", "tok/s", "mfu", "wait", "GB"]
    assert len(" ".join(f"{name}: {value}" for name, value in keep.shown.items())) < 70


def _log_on_a_rank(rank: int, folder: Path) -> None:
    held = torch.ones(BALLAST * rank, dtype=torch.uint8)
    kept, _ = watch(PARTS, folder, callbacks=[Throughput()], devices=2, strategy="ddp")
    del held
    torch.save(kept.logged[-1] | {"own": peak_memory(torch.device("cpu"))}, folder / f"{rank}.pt")


@pytest.mark.slow
def test_what_is_logged_is_of_all_ranks_and_memory_that_of_the_fullest(tmp_path: Path) -> None:
    run_ranks(_log_on_a_rank, tmp_path)
    lean, full = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert full["own"] - lean["own"] > 0.5 * BALLAST
    assert lean["train/memory_gb"] == full["train/memory_gb"] > lean["own"] / 1e9
    assert lean["train/data_wait"] == full["train/data_wait"]
