"""Runs whose weights are all of one other type: what is computed is the same, to that type's precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import PARTS, make_module, tensors, watch
from torch.utils.data import DataLoader

from onn_lightning.callbacks import LossReweighting, NeuronProtection, SkipBrokenSteps
from onn_lightning.optim import MuonAdamW
from onn_lightning.regulation import LossSigmoidWeight


def _muon(groups: Any) -> torch.optim.Optimizer:
    return MuonAdamW(groups, lr=1e-3)


@pytest.mark.parametrize(
    ("precision", "kind", "relative"), [("64-true", torch.float64, 1e-4), ("bf16-true", torch.bfloat16, 0.1)]
)
def test_weights_of_another_type_train_validate_and_give_the_same_figures(
    tmp_path: Path, precision: str, kind: torch.dtype, relative: float
) -> None:
    steps = []
    for name in ("32-true", precision):
        module = make_module(optimizer=_muon)
        callbacks = [SkipBrokenSteps(), LossReweighting(w_gate=LossSigmoidWeight()), NeuronProtection()]
        validation = DataLoader(PARTS[:1], batch_size=None)
        kept, _ = watch(
            PARTS,
            tmp_path,
            module,
            callbacks=callbacks,
            validation=validation,
            precision=name,
            gradient_clip_val=1.0,
        )
        steps.append(tensors(kept.vitals[-1]))
    assert {parameter.dtype for parameter in module.parameters()} == {kind}
    reference, figures = steps
    for name in ("main_loss", "tau", "surprise", "pi", "activation"):
        assert figures[name].dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(figures[name].float(), reference[name], rtol=relative, atol=0.0, msg=name)


def test_weights_in_float16_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"16-true.*Choose bf16-true") as raised:
        watch(PARTS, tmp_path, precision="16-true")
    assert "\n" not in str(raised.value)
