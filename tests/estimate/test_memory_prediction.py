"""The predicted memory of a step beside that of a real one, and what an optimizer keeps beside what it kept.

Notable: torch's profiler counts every allocation and release on the CPU, from before the model is made
until after it is gone, so the peak is exact and no other process disturbs it.
"""

from __future__ import annotations

import gc
import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from toy import ByteText, pack

from onn_lightning import OmniModule
from onn_lightning.estimate.activations import PRECISIONS
from onn_lightning.estimate.run import estimate
from onn_lightning.estimate.states import optimizer_numbers
from onn_lightning.nn import TrunkConfig
from onn_lightning.nn.recompute import Checkpointing
from onn_lightning.optim import MuonAdamW

# activations, the mask, and weights with their copies are the most of it, in turn
CASES: dict[str, tuple[TrunkConfig, int, int, int | None, Checkpointing]] = {
    "tokens": (TrunkConfig(128, 4, 4, 2), 4, 256, None, "none"),
    "mask": (TrunkConfig(64, 2, 4, 2), 1, 1536, 32, "none"),
    "weights": (TrunkConfig(256, 4, 4), 2, 128, 64, "none"),
    "few tokens": (TrunkConfig(256, 6, 4, 2), 1, 64, None, "none"),
    "block": (TrunkConfig(128, 6, 4, 2), 4, 256, 32, "block"),
    "selective": (TrunkConfig(128, 6, 4, 2), 4, 256, 32, "selective"),
}


def trained(module: OmniModule, rows: int, length: int, steps: int, **ranks: Any) -> torch.optim.Optimizer:
    """Train on full rows of text; the optimizer afterwards. `ranks`: the trainer's strategy and devices."""
    batch = pack([[[("text", "x" * (length - 2))]]] * rows, list(module.modalities.values()), length)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    settings = {"devices": 1, "gradient_clip_val": 1.0, **quiet, **ranks}
    trainer = Trainer(max_steps=steps, accelerator="cpu", **settings)
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))
    return trainer.optimizers[0]


def measured_peak(
    folder: Path,
    config: TrunkConfig,
    rows: int,
    length: int,
    width: int | None,
    mode: Checkpointing,
    **ranks: Any,
) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module = OmniModule(config, [ByteText(width)], w_gate=0.1)
        module.trunk.checkpointing = mode
        trained(module, rows, length, 2, **ranks)
        del module
        gc.collect()  # what is released after the profiler stops would count in its next run
    path = folder / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    memory = [event["args"] for event in sorted(events, key=itemgetter("ts"))]  # one thread after another
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return max(event["Total Allocated"] for event in memory) - before


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_peak_is_within_a_tenth_of_the_measured_one(name: str, tmp_path: Path) -> None:
    config, rows, length, width, mode = CASES[name]
    with torch.device("meta"):
        module = OmniModule(config, [ByteText(width)], w_gate=0.1)
    predicted = estimate(module, rows, length, PRECISIONS["32-true"]).peak("single", mode)
    assert predicted == pytest.approx(measured_peak(tmp_path, config, rows, length, width, mode), rel=0.1)


@pytest.mark.parametrize("optimizer", [MuonAdamW, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_keeps_what_its_miniature_says(optimizer: type[torch.optim.Optimizer]) -> None:
    config = TrunkConfig(32, 2, 2)
    real = OmniModule(config, [ByteText(16)], optimizer=optimizer)
    kept = trained(real, 1, 32, 1).state.values()
    numbers = sum(value.numel() for state in kept for value in state.values() if torch.is_tensor(value))
    with torch.device("meta"):
        module = OmniModule(config, [ByteText(16)], optimizer=optimizer)
    assert optimizer_numbers(module) == numbers


def test_many_gpus_share_states_under_fsdp2_and_hold_all_of_them_under_ddp() -> None:
    with torch.device("meta"):
        module = OmniModule(TrunkConfig(64, 8, 4), [ByteText()])
    found = estimate(module, 1, 64, PRECISIONS["bf16-mixed"], gpus=4)
    single, ddp, fsdp2 = (found.states[name] for name in ("single", "ddp", "fsdp2"))
    assert ddp.total == single.total
    assert fsdp2.gradients == single.gradients // 4
    assert fsdp2.optimizer == single.optimizer // 4
    assert sum(found.parameters.values()) * 4 == single.weights
