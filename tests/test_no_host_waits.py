"""Steps between two loggings, on a device whose numbers cannot be read: whatever waits for one fails.

The meta device computes shapes and nothing else. `.item()`, a copy to the host, a branch on a tensor's value,
a shape that depends on one: each raises there, and makes the host wait for all that a real device has queued.
Left out is `Dashboard`, which copies at a rhythm of its own, without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from monitored import PARTS, make_module
from torch.utils.data import DataLoader, IterableDataset

from onn_lightning import Batch
from onn_lightning.callbacks import (
    GrowOnPlateau,
    LossReweighting,
    LossSpikes,
    NeuronProtection,
    PIMonitor,
    Plasticity,
    RunRecord,
    SkipBrokenSteps,
    Throughput,
)
from onn_lightning.optim import MuonAdamW, NeuronAdamW, default_optimizer, row_formulas
from onn_lightning.regulation import ConsolidatingWeight

STEPS, MICRO_BATCHES = 3, 2


class Unreadable(Accelerator):
    """An accelerator of one device, the meta device."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""

    def teardown(self) -> None:
        """Nothing to take down."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device("meta")]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "unreadable"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


class Stream(IterableDataset[Batch]):
    """Batches without a known end: Lightning would reduce a length over the ranks, and read it."""

    def __iter__(self) -> Iterator[Batch]:
        yield from PARTS * STEPS


class Enough(Exception):
    """All steps are done; what follows an epoch may read."""


class EndAfterSteps(Callback):
    """Ends the run from within its last step, and keeps what ended it."""

    cause: BaseException | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == STEPS:
            raise Enough

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.cause = exception


@pytest.fixture(autouse=True)
def _what_meta_lacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Autocast, a fused step with a learning rate on the device, a compiler that is worth its time."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type=None: False)
    monkeypatch.setattr(row_formulas, "compiled_adamw", lambda: row_formulas.adamw)
    library = torch.library.Library("aten", "IMPL")
    library.impl("_fused_adamw_.tensor_lr", lambda *_, **__: None, "Meta")
    yield
    library._destroy()


@pytest.mark.parametrize(
    ("optimizer", "regulators"),
    [
        (default_optimizer, [LossReweighting]),
        (NeuronAdamW, [LossReweighting, Plasticity, NeuronProtection]),
        (MuonAdamW, [LossReweighting, NeuronProtection]),
    ],
)
def test_no_step_reads_from_the_device(
    tmp_path: Path, optimizer: Callable[..., Any], regulators: list[type[Callback]]
) -> None:
    given = {LossReweighting: {"w_gate": ConsolidatingWeight()}}
    end = EndAfterSteps()
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator=Unreadable(),
        strategy=SingleDeviceStrategy(device=torch.device("meta")),
        devices=1,
        max_steps=STEPS + 1,
        accumulate_grad_batches=MICRO_BATCHES,
        gradient_clip_val=1.0,
        log_every_n_steps=100,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            PIMonitor(),
            SkipBrokenSteps(),
            LossSpikes(),
            *(kind(**given.get(kind, {})) for kind in regulators),
            GrowOnPlateau(),
            Throughput(),
            RunRecord(),
            end,
        ],
    )
    with pytest.raises(Exception):  # noqa: B017 - taking the module down reads: `cause` says what came first
        trainer.fit(make_module(optimizer=optimizer), DataLoader(Stream(), batch_size=None))
    if not isinstance(end.cause, Enough):
        raise AssertionError("a step waits for the device") from end.cause
    assert trainer.global_step == STEPS
