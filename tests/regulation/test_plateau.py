"""The rule that says when to grow: on figures of every kind, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onn_lightning.regulation import Vitals
from onn_lightning.regulation.plateau import Plateau

FEED_FORWARD = torch.tensor([False, False, True, True])


def vitals(loss: float, activation: float = 0.5, pi: float = 0.5) -> Vitals:
    """One step in which the feed-forward neurons, the last two, fire for `activation` of the tokens."""
    one = torch.ones(1)
    neurons = torch.tensor([0.0, 0.0, activation, activation])
    return Vitals(
        step=1,
        main_loss=torch.tensor(loss),
        tau=one[0],
        surprise=one[0],
        activation=neurons.mean(),
        gate=one[0],
        prior_std=one[0],
        pi=torch.tensor(pi),
        pi_ema=one[0],
        modalities=("text",),
        modality_loss=one,
        modality_tau=one,
        modality_pi=one,
        modality_targets=one,
        layer_pi=one,
        neuron_surprise=neurons,
        neuron_activation=neurons,
    )


def rule(**changes: Any) -> Plateau:
    """A rule that is quick to fire, unless changed."""
    settings: dict[str, Any] = {"patience": 10, "min_improvement": 0.01, "cooldown": 0, "half_life": 1.0}
    made = Plateau(**(settings | changes))
    made.observe(FEED_FORWARD)
    return made


def steps_that_fire(made: Plateau, losses: Iterable[float], activation: float = 0.5) -> list[int]:
    """Numbers, from 1, of the steps in which the rule fires."""
    return [step for step, loss in enumerate(losses, 1) if bool(made(vitals(loss, activation)))]


def test_a_flat_loss_at_high_activation_fires_once_the_window_is_full() -> None:
    assert steps_that_fire(rule(), [2.0] * 13) == [11, 12, 13]


def test_a_falling_loss_does_not_fire_until_it_is_flat() -> None:
    falling = [5 * 0.97**step for step in range(60)]
    assert steps_that_fire(rule(), falling) == []
    assert steps_that_fire(rule(), falling + [falling[-1]] * 30)[0] > 60


def test_a_fall_of_less_than_the_least_improvement_is_a_plateau() -> None:
    assert steps_that_fire(rule(), [2 * 0.9995**step for step in range(30)])[0] == 11
    assert not steps_that_fire(rule(), [2 * 0.998**step for step in range(30)])


def test_a_flat_loss_at_low_activation_does_not_fire() -> None:
    assert steps_that_fire(rule(min_activation=0.3), [2.0] * 40, activation=0.2) == []
    assert steps_that_fire(rule(min_activation=0.3, neurons="all"), [2.0] * 40, activation=0.5) == []


def test_a_new_world_is_no_plateau() -> None:
    losses = [2.0] * 8 + [4.0] * 10  # it gets worse within the window
    assert steps_that_fire(rule(), losses) == []
    learning_it = [2.0] * 8 + [2 + 2 * 0.9**step for step in range(25)]
    assert all(step > 30 for step in steps_that_fire(rule(), learning_it))


def test_nothing_fires_within_the_cooldown_or_right_after_a_growth() -> None:
    made = rule(cooldown=20)
    assert steps_that_fire(made, [2.0] * 22) == [20, 21, 22]
    made.restart()
    assert steps_that_fire(made, [2.0] * 22) == [20, 21, 22]


def test_predictive_integrity_may_be_watched_instead() -> None:
    made = rule(figure="pi")
    fired = [bool(made(vitals(5 * 0.9**step, pi=0.3))) for step in range(12)]
    assert fired == [False] * 10 + [True] * 2


def test_a_broken_step_neither_fires_nor_leaves_a_trace() -> None:
    made, twin = rule(), rule()
    for step in range(12):
        made(vitals(2.0))
        twin(vitals(2.0))
        for loss, activation in ((math.nan, 0.5), (math.inf, 0.5), (2.0, math.nan)):
            assert not bool(made(vitals(loss, activation))), step
    for name, buffer in made.state_dict().items():
        assert torch.equal(buffer, twin.state_dict()[name]), name
    assert bool(made(vitals(2.0)))


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    losses = [5 * 0.9**step + 0.01 * (step % 3) for step in range(60)]
    unbroken = rule()
    fired = [bool(unbroken(vitals(loss))) for loss in losses]
    broken = rule()
    again = [bool(broken(vitals(loss))) for loss in losses[:23]]
    resumed = rule()
    resumed.load_state_dict(broken.state_dict())
    again += [bool(resumed(vitals(loss))) for loss in losses[23:]]
    assert fired == again
    for name, buffer in unbroken.state_dict().items():
        assert torch.equal(buffer, resumed.state_dict()[name]), name


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.floats(width=32))
def test_any_figures_leave_a_finite_state(losses: list[float], activation: float) -> None:
    made = rule(patience=3)
    for loss in losses:
        answer = made(vitals(loss, activation))
        assert answer.dtype == torch.bool and answer.shape == ()
    made.restart()
    assert steps_that_fire(made, [2.0] * 5) == [4, 5]


def test_the_feed_forward_neurons_must_be_known() -> None:
    with pytest.raises(ValueError, match="call `observe` first"):
        Plateau()(vitals(1.0))


@pytest.mark.parametrize(
    "wrong",
    [{"patience": 0}, {"min_improvement": 2}, {"min_activation": -1}, {"cooldown": -1}, {"figure": "loss"}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plateau(**wrong)
