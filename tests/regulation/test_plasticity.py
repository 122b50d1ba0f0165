"""Plasticity policies: open to novelty and progress, consolidating otherwise, bounded whatever comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from handmade_vitals import ANY_VITALS, BROKEN_VITALS, vitals
from hypothesis import given, settings
from hypothesis import strategies as st

from onn_lightning.regulation import Vitals
from onn_lightning.regulation.plasticity import FixedPlasticity, IntegrityPlasticity


def course(policy: IntegrityPlasticity, steps: Iterable[tuple[float, float]]) -> list[float]:
    """Factor in each step; steps are (main loss, F), at an alpha of 1."""
    return [float(policy(vitals(main_loss=loss, pi=math.exp(-surprise)))) for loss, surprise in steps]


def quick(**options: float) -> IntegrityPlasticity:
    return IntegrityPlasticity(**({"half_life": 5.0, "fast": 4.0, "slow": 32.0} | options))


WELL_PREDICTED = (2.0, 1.0)


def test_a_run_begins_open_and_consolidates_with_the_stated_half_life() -> None:
    factors = course(IntegrityPlasticity(low=0.2, high=1.0, half_life=20), [WELL_PREDICTED] * 200)
    assert factors[19] == pytest.approx(0.2 + 0.8 / 2, abs=1e-3)
    assert factors[39] == pytest.approx(0.2 + 0.8 / 4, abs=1e-3)
    assert 0.2 <= factors[-1] < 0.202


def test_novelty_opens_within_a_few_steps() -> None:
    policy = quick()
    settled = course(policy, [WELL_PREDICTED] * 200)[-1]
    surprised = course(policy, [(5.0, 2.5)] * 8)
    assert settled < 0.21
    assert surprised[0] > 0.4 and surprised[-1] > 0.9
    # the world stays as it is now: that has become the habit
    assert course(policy, [(5.0, 2.5)] * 300)[-1] < 0.21


def test_progress_keeps_it_open_without_any_novelty() -> None:
    """F is 1 throughout, as of a calibrated model; the loss falls by 1 % a step, then no more."""
    policy = quick()
    falling = course(policy, [(5.0 * 0.99**step, 1.0) for step in range(150)])
    assert min(falling[40:]) > 0.8  # until then both averages have seen the same steps
    assert course(policy, [(5.0 * 0.99**150, 1.0)] * 200)[-1] < 0.21


def test_a_rising_loss_at_usual_surprise_does_not_open() -> None:
    policy = quick()
    course(policy, [WELL_PREDICTED] * 200)
    assert max(course(policy, [(4.0, 1.0)] * 5)) < 0.21


def test_ordinary_noise_does_not_open() -> None:
    """Losses that vary by 3 % from step to step, with the default constants."""
    noise = (1 + 0.03 * torch.randn(3000, generator=torch.Generator().manual_seed(0))).tolist()
    factors = course(IntegrityPlasticity(), [(2.0 * n, n) for n in noise])
    assert max(factors[1200:]) < 0.3


def test_what_is_known_by_heart_does_not_open_by_its_trembling() -> None:
    """Losses of thousandths of a nat may double from step to step: nothing is to be learned there."""
    policy = quick()
    course(policy, [(0.002, 0.002)] * 200)
    trembling = [(0.002 * 2 ** (step % 2), 0.002 * 2 ** (step % 2)) for step in range(50)]
    assert max(course(policy, trembling)) < 0.21


def test_alpha_changes_next_to_nothing() -> None:
    steps = [(2.0, 1.0)] * 50 + [(2.5, 1.5)] * 10
    sharp, blunt = (course(quick(), [(loss, alpha * f) for loss, f in steps]) for alpha in (2.0, 0.5))
    assert sharp == pytest.approx(blunt, abs=0.05)


def test_a_fixed_factor_stays() -> None:
    assert float(FixedPlasticity(0.7)(vitals(pi=math.nan))) == pytest.approx(0.7)


@given(steps=st.lists(ANY_VITALS, max_size=12))
@settings(max_examples=40)
def test_the_factor_is_finite_and_bounded_whatever_comes(steps: list[Vitals]) -> None:
    policy = quick(low=0.1, high=3.0)
    for step in steps:
        assert 0.1 - 1e-6 <= float(policy(step)) <= 3 + 1e-6


@given(steps=st.lists(ANY_VITALS, max_size=12))
@settings(max_examples=10)
def test_after_anything_at_all_it_relaxes_and_opens_again(steps: list[Vitals]) -> None:
    policy = quick(slow=16.0)
    for step in steps:
        policy(step)
    assert course(policy, [WELL_PREDICTED] * 250)[-1] < 0.21
    assert course(policy, [(5.0, 2.5)] * 8)[-1] > 0.8


@given(step=BROKEN_VITALS)
@settings(max_examples=5)
def test_a_broken_step_leaves_the_state_as_it_was(step: Vitals) -> None:
    policy = quick()
    factor = course(policy, [WELL_PREDICTED] * 5)[-1]
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    assert float(policy(step)) == factor
    assert all(torch.equal(value, state[name]) for name, value in policy.state_dict().items())


def test_the_state_goes_on_where_it_was() -> None:
    policy, resumed = quick(), quick()
    course(policy, [WELL_PREDICTED] * 20)
    resumed.load_state_dict(policy.state_dict())
    steps = [(3.0, 1.4), (2.0, 1.0), (1.9, 1.0)]
    assert course(policy, steps) == course(resumed, steps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPlasticity(0.0), "nothing would ever be learned"),
        (lambda: IntegrityPlasticity(low=0.0), "0 < low <= high"),
        (lambda: IntegrityPlasticity(low=2.0), "0 < low <= high"),
        (lambda: IntegrityPlasticity(high=math.inf), "0 < low <= high"),
        (lambda: IntegrityPlasticity(fast=300.0), "longer than fast"),
        (lambda: IntegrityPlasticity(half_life=0.0), "half_life"),
        (lambda: IntegrityPlasticity(novelty_scale=0.0), "novelty_scale"),
    ],
)
def test_impossible_constants_are_refused(make: Callable[[], IntegrityPlasticity], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
