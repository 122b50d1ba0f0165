"""`NoveltyResponse`: another learning rate right after the world turned strange, and slowly back."""

from __future__ import annotations

import math

import pytest
import torch
from handmade_vitals import ANY_VITALS, BROKEN_VITALS, vitals
from hypothesis import given, settings
from hypothesis import strategies as st

from onn_lightning.regulation.novelty_response import NoveltyResponse


def used_to(policy: NoveltyResponse, pi: float = 0.36, steps: int = 100) -> NoveltyResponse:
    """The policy after so many usual steps."""
    for _ in range(steps):
        policy(vitals(pi=pi))
    return policy


@pytest.mark.parametrize("alarmed", [0.1, 2.0])
def test_it_answers_in_the_very_step_that_is_strange(alarmed: float) -> None:
    policy = used_to(NoveltyResponse(alarmed))
    assert float(policy(vitals(pi=0.36))) == 1
    strange = float(policy(vitals(pi=0.36**7)))  # seven times as surprising
    shock = 1 - math.exp(-(math.log(7) - 0.15) / 0.5)
    assert strange == pytest.approx(1 + (alarmed - 1) * shock, rel=1e-4)


def test_the_alarm_fades_with_its_half_life() -> None:
    policy = used_to(NoveltyResponse(0.1, half_life=50))
    first = 1 - float(policy(vitals(pi=1e-20)))
    for _ in range(50):
        factor = float(policy(vitals(pi=0.36)))
    assert 1 - factor == pytest.approx(first / 2, rel=1e-3)


def test_noise_is_no_novelty() -> None:
    policy = used_to(NoveltyResponse(0.1))
    assert all(float(policy(vitals(pi=0.36 ** (1 + 0.1 * (-1) ** step)))) == 1 for step in range(50))


def test_a_world_that_grows_more_familiar_is_no_novelty() -> None:
    policy = used_to(NoveltyResponse(0.1), pi=0.1)
    assert float(policy(vitals(pi=0.9))) == 1


def test_a_young_life_has_no_habit_to_break_with() -> None:
    policy = NoveltyResponse(0.1)
    assert [float(policy(vitals(pi=pi))) for pi in (0.9, 0.01, 0.5, 1e-6)] == [1, 1, 1, 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(ANY_VITALS, max_size=12))
def test_any_vitals_leave_the_factor_within_its_bounds_and_the_policy_sane(steps: list) -> None:
    policy = NoveltyResponse(0.1, slow=4, half_life=5)
    for step in steps:
        assert policy.bounds[0] <= float(policy(step)) <= policy.bounds[1]
    assert float(used_to(policy, steps=200)(vitals(pi=0.36))) == pytest.approx(1, abs=1e-3)


@settings(deadline=None, max_examples=20)
@given(BROKEN_VITALS)
def test_a_broken_step_leaves_no_trace(broken) -> None:
    policy = used_to(NoveltyResponse(0.1), steps=80)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy(broken)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("options", [{"alarmed": 0.0}, {"alarmed": 0.1, "half_life": 0.0}])
def test_impossible_settings_are_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="NoveltyResponse"):
        NoveltyResponse(**options)
