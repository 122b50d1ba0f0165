"""Optimizers that skip a broken step by themselves: they keep every bit, and go on as if it had not been."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onn_lightning.optim import MuonAdamW, NeuronAdamW

MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "torch's fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "NeuronAdamW": lambda groups: NeuronAdamW(groups, lr=0.1),
    "MuonAdamW": lambda groups: MuonAdamW(groups, lr=0.1),
}


class Steps:
    """Steps of one optimizer on a matrix, whose rows may rest, and a vector."""

    def __init__(self, kind: str, dtype: torch.dtype, rests: bool) -> None:
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(9, 6).to(dtype))
        self.vector = nn.Parameter(torch.randn(9).to(dtype))
        groups = [{"params": [self.matrix], "name": "matrix"}, {"params": [self.vector], "name": "vector"}]
        self.optimizer: Any = MAKERS[kind](groups)
        self.rests = rests

    def step(self, number: int, found_inf: float | None = None) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in (self.matrix, self.vector):
            gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if found_inf:
                gradient[3] = math.nan
            parameter.grad = gradient
        if self.rests:
            mask = torch.rand(9, generator=generator) < 0.5
            self.optimizer.set_firing({self.matrix: mask, self.vector: mask})
        self.optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf)
        self.optimizer.step()

    def state(self) -> list[Tensor]:
        states = copy.deepcopy(self.optimizer.state_dict()["state"])
        numbers = [value for state in states.values() for value in state.values()]
        return [self.matrix.detach().clone(), self.vector.detach().clone(), *numbers]


CASES = [
    (kind, dtype, rests)
    for kind in MAKERS
    for dtype in (torch.float32, torch.bfloat16)
    for rests in (False, True)
    if not (rests and kind.startswith("torch"))
]


@pytest.mark.parametrize(("kind", "dtype", "rests"), CASES)
def test_a_flagged_step_keeps_every_bit_and_leaves_no_trace(
    kind: str, dtype: torch.dtype, rests: bool
) -> None:
    """In float32 by the loops for the CPU, in bfloat16 by the formulas for accelerators."""
    flagged, spared = Steps(kind, dtype, rests), Steps(kind, dtype, rests)
    for number, found_inf in enumerate((0.0, 1.0, 0.0, 1.0, 1.0, 0.0)):
        before = flagged.state()
        flagged.step(number, found_inf)
        if found_inf:
            torch.testing.assert_close(flagged.state(), before, rtol=0, atol=0)
        else:
            spared.step(number)
    torch.testing.assert_close(flagged.state(), spared.state(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["NeuronAdamW", "MuonAdamW"])
def test_a_flag_serves_one_step(kind: str) -> None:
    steps = Steps(kind, torch.float32, rests=False)
    steps.step(0, 1.0)
    before = steps.state()[0]
    for parameter in (steps.matrix, steps.vector):
        parameter.grad = torch.ones_like(parameter)
    steps.optimizer.step()
    assert not torch.equal(steps.state()[0], before)
