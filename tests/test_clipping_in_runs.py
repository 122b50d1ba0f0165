"""Clipping in real training: fused optimizers, bfloat16, a loss scaler, data parallel and sharded weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from monitored import MODALITIES, PARTS, TRUNK, ScaledFloat32, make_module, watch
from ranks import run_ranks
from torch.distributed.tensor import DTensor

from onn_lightning import OmniModule
from onn_lightning.callbacks import SkipBrokenSteps
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.optim import MuonAdamW, NeuronAdamW

LIMIT = 0.01  # far below the norms of these gradients
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "NeuronAdamW": lambda groups: NeuronAdamW(groups, lr=0.01),
    "MuonAdamW": lambda groups: MuonAdamW(groups, lr=0.01),
}


class Norms(Callback):
    """Norms of the gradients that every step moved by, in float64, and their largest numbers."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.largest: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        found = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        whole = [value.full_tensor() if isinstance(value, DTensor) else value for value in found]
        flat = torch.cat([value.double().flatten() for value in whole])
        self.norms.append(float(flat.norm()))
        self.largest.append(float(flat.abs().max()))


def clipped(
    folder: Path, kind: str, *callbacks: Callback, algorithm: str = "norm", **settings: Any
) -> tuple[Norms, list[dict[str, float]]]:
    """Norms of the clipped gradients of a run, and what it logged."""
    norms = Norms()
    clipping = {"gradient_clip_val": LIMIT, "gradient_clip_algorithm": algorithm}
    module = make_module(optimizer=OPTIMIZERS[kind])
    keep, _ = watch(PARTS[:2], folder, module, callbacks=[*callbacks, norms], **clipping | settings)
    return norms, keep.logged


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_moves_by_gradients_of_the_limits_norm(
    kind: str, precision: Any, tmp_path: Path
) -> None:
    norms, logged = clipped(tmp_path, kind, SkipBrokenSteps(), precision=precision)
    assert norms.norms == pytest.approx([LIMIT] * 2, rel=1e-5)
    assert all(step["train/grad_norm"] > 10 * LIMIT for step in logged)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_in_bfloat16_are_clipped_as_exactly_as_it_can_hold(kind: str, tmp_path: Path) -> None:
    norms, _ = clipped(tmp_path, kind, precision="bf16-true")
    assert norms.norms == pytest.approx([LIMIT] * 2, rel=1e-3)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_step_is_clipped_under_a_loss_scaler(algorithm: str, tmp_path: Path) -> None:
    """Lightning refuses it: such an optimizer unscales by itself, after clipping."""
    scaler: MixedPrecision = ScaledFloat32(1024.0)
    norms, _ = clipped(tmp_path, "fused AdamW", algorithm=algorithm, plugins=[scaler])
    if algorithm == "norm":
        assert norms.norms == pytest.approx([LIMIT] * 2, rel=1e-5)
    else:
        assert norms.largest == pytest.approx([LIMIT] * 2) and min(norms.norms) > LIMIT


def test_the_logged_norm_is_that_before_clipping(tmp_path: Path) -> None:
    norms, logged = clipped(tmp_path, "NeuronAdamW", SkipBrokenSteps(), gradient_clip_val=None)
    assert [step["train/grad_norm"] for step in logged] == pytest.approx(norms.norms, rel=1e-6)
    _, logged_when_clipped = clipped(tmp_path, "NeuronAdamW", SkipBrokenSteps())
    assert logged_when_clipped[0]["train/grad_norm"] == logged[0]["train/grad_norm"]


def train(rank: int, folder: str) -> None:
    """The same clipped steps with weights on every rank and with weights sharded over them."""
    for strategy in (DDPStrategy(), FSDP2Strategy(2)):
        kind = type(strategy).__name__
        torch.manual_seed(0)
        module = OmniModule(TRUNK, MODALITIES, optimizer=OPTIMIZERS["fused AdamW"], w_gate=0.1)
        norms = Norms()
        settings = {"devices": 2, "gradient_clip_val": LIMIT, "gradient_clip_algorithm": "norm"}
        keep, _ = watch(
            PARTS, Path(folder), module, callbacks=[SkipBrokenSteps(), norms], strategy=strategy, **settings
        )
        taken = [step["train/grad_norm"] for step in keep.logged]
        assert norms.norms == pytest.approx([LIMIT] * 2, rel=1e-5), kind
        torch.save(taken, Path(folder, f"{kind}-{rank}.pt"))
        assert all(value > 10 * LIMIT and math.isfinite(value) for value in taken)
        if dist.is_initialized():
            dist.barrier()


@pytest.mark.slow
def test_two_ranks_clip_by_the_norm_of_all_whether_weights_are_sharded_or_not(tmp_path: Path) -> None:
    run_ranks(train, str(tmp_path))
    taken = [
        torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True)
        for kind in ("DDPStrategy", "FSDP2Strategy")
        for rank in range(2)
    ]
    assert taken[1] == taken[0] and taken[3] == taken[2]
    assert taken[2] == pytest.approx(taken[0], rel=1e-2)  # the first step moves by signs alone
