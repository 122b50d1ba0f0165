"""bf16-mixed with sharded weights: products in bfloat16; weights, gradients and their average in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import PARTS, make_module, moving, watch
from ranks import run_ranks
from torch.nn.functional import softplus

from onn_lightning import OmniModule
from onn_lightning.distributed import FSDP2Strategy


class Types(Callback):
    """Sees the types of weights, gradients and the optimizer's state, and those a layer computes with."""

    def __init__(self, gathered: torch.dtype) -> None:
        self.gathered = gathered
        self.steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, OmniModule)
        for _, layer in pl_module.trunk.sbl_layers():
            observe = layer.observe

            def seen(x: Any, *, layer: Any = layer, observe: Any = observe, **given: Any) -> Any:
                assert layer.mu_weight.dtype == self.gathered
                output = observe(x, **given)
                assert output.output.dtype == torch.bfloat16 and output.surprise.dtype == torch.float32
                return output

            layer.observe = seen  # type: ignore[method-assign]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for parameter in pl_module.parameters():
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            assert all(value.dtype == torch.float32 for value in optimizer.state[parameter].values())
        self.steps += 1


def train(rank: int, folder: str) -> None:
    """The same steps with weights gathered in float32 and in bfloat16."""
    losses = []
    for gather_dtype, gathered in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        types = Types(gathered)
        keep, _ = watch(
            PARTS,
            Path(folder),
            make_module(optimizer=moving),
            callbacks=[types],
            devices=2,
            strategy=FSDP2Strategy(2, gather_dtype=gather_dtype),  # type: ignore[arg-type]
            precision="bf16-mixed",
        )
        assert types.steps == 2
        losses.append([float(vitals.main_loss) for vitals in keep.vitals])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    with pytest.raises(MisconfigurationException, match="bf16-mixed"):
        watch(PARTS, Path(folder), devices=2, strategy=FSDP2Strategy(2, gather_dtype="bfloat16"))


@pytest.mark.slow
def test_only_products_are_in_bfloat16_and_what_is_gathered_where_asked_for(tmp_path: Path) -> None:
    run_ranks(train, str(tmp_path))


def test_keys_of_gathered_bfloat16_are_rounded_more_than_once() -> None:
    """Why it is not the default: root mean square errors of keys, relative to exact ones."""
    generator = torch.Generator().manual_seed(0)
    mu, raw = torch.randn(2, 64, 256, generator=generator, dtype=torch.float64)
    exact = mu * softplus(raw)

    def error(keys: torch.Tensor) -> float:
        return float((keys.bfloat16().double() - exact).norm() / exact.norm())

    once = error(mu.float() * softplus(raw.float()))
    often = error(mu.bfloat16() * softplus(raw.bfloat16()))
    assert 1.5 < often / once < 3
