"""`ConsolidatingWeight`: no pressure while much is learned, pressure in calm, none below the target."""

from __future__ import annotations

import math

import pytest
import torch
from handmade_vitals import ANY_VITALS, BROKEN_VITALS, vitals
from hypothesis import given, settings
from hypothesis import strategies as st

from onn_lightning.regulation.consolidation import ConsolidatingWeight


def lived(losses: list[float], activation: float = 0.6, **options: float) -> list[float]:
    """The weights of a life with these losses."""
    policy = ConsolidatingWeight(**options)
    return [float(policy(vitals(main_loss=loss, activation=activation))) for loss in losses]


def test_the_first_steps_of_a_life_are_without_pressure() -> None:
    assert max(lived([2.0] * 60, slow=70)) == 0


def test_pressure_is_full_in_calm_far_above_the_target() -> None:
    assert lived([2.0] * 100)[-1] == pytest.approx(0.04, rel=1e-3)


def test_a_loss_that_falls_fast_holds_the_pressure_off() -> None:
    falling = [8 * 0.98**step for step in range(200)]
    assert max(lived(falling)) == 0
    slowly = [8 * 0.9995**step for step in range(400)]
    assert lived(slowly)[-1] > 0.02


def test_a_new_world_releases_the_pressure_at_once() -> None:
    weights = lived([2.0] * 100 + [9.0] * 10)
    assert weights[99] == pytest.approx(0.04, rel=1e-3) and max(weights[105:]) == 0


def test_the_weight_in_between_is_what_the_formula_says() -> None:
    policy = ConsolidatingWeight(fast=10, slow=40, progress_scale=0.5, target=0.3, band=0.2, high=0.1)
    fast = slow = age_fast = age_slow = 0.0
    for step in range(80):
        loss = 4 * 0.995**step
        weight = float(policy(vitals(main_loss=loss, activation=0.4)))
        fast = fast * 0.5**0.1 + (1 - 0.5**0.1) * math.log(loss)
        age_fast = age_fast * 0.5**0.1 + 1 - 0.5**0.1
        slow = slow * 0.5**0.025 + (1 - 0.5**0.025) * math.log(loss)
        age_slow = age_slow * 0.5**0.025 + 1 - 0.5**0.025
    progress = slow / age_slow - fast / age_fast
    assert 0.05 < progress < 0.4
    assert weight == pytest.approx(0.1 * (1 - progress / 0.5) * 0.5, rel=1e-4)


@pytest.mark.parametrize("activation", [0.0, 0.1, 0.25])
def test_at_the_target_and_below_nothing_is_pressed(activation: float) -> None:
    assert max(lived([2.0] * 100, activation=activation)) == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(ANY_VITALS, max_size=12))
def test_any_vitals_leave_the_weight_within_its_bounds_and_the_policy_sane(steps: list) -> None:
    policy = ConsolidatingWeight(fast=2, slow=6)
    for step in steps:
        assert 0 <= float(policy(step)) <= policy.bounds[1]
    for _ in range(200):
        weight = policy(vitals(main_loss=2.0, activation=0.6))
    assert float(weight) == pytest.approx(policy.bounds[1], rel=1e-3)


@settings(deadline=None, max_examples=20)
@given(BROKEN_VITALS)
def test_a_broken_step_leaves_no_trace(broken) -> None:
    policy = ConsolidatingWeight()
    for _ in range(80):
        policy(vitals())
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy(broken)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"band": 0.0}, {"progress_scale": -1.0}, {"slow": 10.0, "fast": 10.0}, {"target": 1.0}]
)
def test_impossible_settings_are_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ConsolidatingWeight"):
        ConsolidatingWeight(**options)
