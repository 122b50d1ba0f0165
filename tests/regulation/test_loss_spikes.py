"""The rule for loss spikes: against a plain float64 reference, and on curves without and with spikes."""

from __future__ import annotations

import math

import pytest
import torch
from handmade_vitals import vitals
from torch import Tensor

from onn_lightning.regulation.loss_spikes import SpikeRule


def curve(steps: int = 600, noise: float = 0.05, seed: int = 0) -> Tensor:
    """A loss as it falls in training, with the scatter of its batches."""
    generator = torch.Generator().manual_seed(seed)
    falling = 1.5 + 4 * torch.exp(-torch.arange(steps) / 60)
    return falling * (1 + noise * torch.randn(steps, generator=generator))


def spiking_steps(rule: SpikeRule, losses: Tensor, present: Tensor | None = None) -> list[int]:
    """Steps that the rule marks, of one modality."""
    rule.observe(1)
    found = []
    for step, loss in enumerate(losses):
        there = 1 if present is None else int(present[step])
        said = rule(vitals(modality_loss=[float(loss)], modality_targets=[there]))
        if said.spiking.any():
            found.append(step)
    return found


def reference(
    losses: Tensor, z: float, ratio: float, half_life: float, deviation_half_life: float, warmup: int
) -> list[int]:
    """The formula, in plain numbers."""
    average = deviation = 0.0
    found = []
    for step, loss in enumerate(losses.double().tolist()):
        rate = max(1 / (step + 1), 1 - 0.5 ** (1 / half_life))
        deviation_rate = max(1 / (step + 1), 1 - 0.5 ** (1 / deviation_half_life))
        band = 3 * deviation
        if step >= warmup and loss > average + z * deviation and loss > ratio * average:
            found.append(step)
        taken = min(max(loss, average - band), average + band) if step >= warmup else loss
        distance = 1.25 * abs(taken - average) if step else 0.0
        deviation += deviation_rate * (distance - deviation)
        average += rate * (taken - average)
    return found


def test_the_rule_is_its_formula() -> None:
    losses = curve(200, noise=0.1)
    losses[[90, 120, 121]] *= 3
    got = spiking_steps(SpikeRule(2.0, 1.1, 10.0, 20.0, 10), losses)
    assert got == reference(losses, 2.0, 1.1, 10.0, 20.0, 10)
    assert {90, 120, 121} <= set(got)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_a_curve_without_spikes_has_none(noise: float, seed: int) -> None:
    assert not spiking_steps(SpikeRule(), curve(noise=noise, seed=seed))


def test_spikes_are_found_alone_and_in_a_row_and_end() -> None:
    losses = curve()
    losses[200] *= 3
    losses[400:415] *= 2
    assert spiking_steps(SpikeRule(), losses) == [200, *range(400, 415)]


def test_a_new_level_is_accepted_in_time() -> None:
    losses = curve(800)
    losses[300:] *= 2
    found = spiking_steps(SpikeRule(), losses)
    assert found[0] == 300 and 5 < len(found) < 50


def test_neither_an_absent_modality_nor_a_loss_that_is_not_finite_counts() -> None:
    losses = curve(200)
    losses[100], losses[150] = 0.0, math.nan
    present = torch.ones(200)
    present[100] = 0
    rule, other = SpikeRule(), SpikeRule()
    assert not spiking_steps(rule, losses, present)
    whole = torch.cat([losses[:100], losses[101:150], losses[151:]])
    spiking_steps(other, whole)
    assert torch.equal(rule.average, other.average) and torch.equal(rule.seen, other.seen)


@pytest.mark.parametrize("name", ["z", "ratio", "half_life", "deviation_half_life", "warmup_steps"])
def test_a_number_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"SpikeRule: {name} is"):
        SpikeRule(**{name: -1})
