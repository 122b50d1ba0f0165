"""Predictive integrity: its constants, its bounds, and the figures of a step made out of sums."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import softplus

from onn_lightning.regulation.integrity import Alpha, Gamma, Integrity
from onn_lightning.regulation.measure import Measured, entropy_of_shares, measure
from onn_lightning.regulation.step_sums import StepTotals

MAGNITUDES = st.floats(0.0, 2.0**100, width=32)
ONES = torch.ones(2)
CONSTANTS = st.one_of(st.floats(0.0, 1e6), st.just("word"))


def totals(loss: list[float], entropy: list[float], targets: list[int], surprise: list[float]) -> StepTotals:
    predictions = [float(count) if nats else 0.0 for count, nats in zip(targets, entropy, strict=True)]
    return StepTotals(
        surprise=torch.tensor(surprise),
        fired=torch.arange(len(surprise)).float(),
        tokens=torch.tensor(float(len(surprise))),
        loss_sums=torch.tensor(loss),
        entropy_sums=torch.tensor(entropy),
        targets=torch.tensor(targets).float(),
        predictions=torch.tensor(predictions),
        kl=torch.tensor(0.1),
    )


def measured(alpha: Alpha = 1.0, gamma: Gamma = 1.0, gate: float = -1.0) -> Measured:
    return Measured(("a", "b"), (torch.full((4,), gate),), (3, 1), Integrity(alpha, gamma), (0.1, 1.0))


@given(
    loss=st.lists(MAGNITUDES, min_size=2, max_size=2),
    entropy=st.lists(MAGNITUDES, min_size=2, max_size=2),
    targets=st.lists(st.integers(0, 2**40), min_size=2, max_size=2),
    surprise=st.lists(MAGNITUDES, min_size=4, max_size=4),
    alpha=CONSTANTS,
    gamma=CONSTANTS,
    gate=st.floats(-1e6, 1e6),
)
def test_integrity_is_a_share_above_zero_for_any_finite_figures(
    loss: list[float],
    entropy: list[float],
    targets: list[int],
    surprise: list[float],
    alpha: float | str,
    gamma: float | str,
    gate: float,
) -> None:
    """With tau at 0, absent modalities, losses of any size; constants that are numbers or read."""
    network = measured(
        "activation_rate" if isinstance(alpha, str) else alpha,
        "gate_threshold" if isinstance(gamma, str) else gamma,
        gate,
    )
    vitals = measure(totals(loss, entropy, targets, surprise), network, ONES, 1)
    for pi in (vitals.pi, vitals.modality_pi, vitals.layer_pi):
        assert ((pi > 0) & (pi <= 1)).all()
    assert vitals.finite


@given(loss=st.floats(-(2.0**100), 0.0, width=32))
def test_a_loss_below_zero_is_no_more_than_perfect(loss: float) -> None:
    assert measure(totals([loss, 0.0], [0.0, 0.0], [1, 0], [0.0] * 4), measured(), ONES, 1).pi == 1


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "entropy", "surprise"])
def test_broken_figures_are_shown_and_told(broken: float, where: str) -> None:
    figures = {"loss": [1.0, 2.0], "entropy": [3.0, 1.0], "targets": [4, 1], "surprise": [1.0, 2.0, 3.0, 4.0]}
    figures[where] = [broken, *figures[where][1:]]
    vitals = measure(totals(**figures), measured(), ONES, 1)
    assert not vitals.finite
    shown = {"loss": vitals.main_loss, "entropy": vitals.tau, "surprise": vitals.surprise}[where]
    assert not shown.isfinite()


def test_figures_of_a_step_follow_from_its_sums() -> None:
    vitals = measure(
        totals([8.0, 6.0], [4.0, 0.0], [4, 2], [1.0, 2.0, 3.0, 6.0]), measured(0.5, 2.0), ONES, 7
    )
    assert vitals.step == 7 and vitals.modalities == ("a", "b")
    assert vitals.main_loss == 8 / 4 + 6 / 2 and vitals.tau == 4 / 4 and vitals.surprise == 3
    assert vitals.modality_loss.tolist() == [2.0, 3.0] and vitals.modality_tau.tolist() == [1.0, 0.0]
    assert vitals.neuron_activation.tolist() == [0.0, 0.25, 0.5, 0.75] and vitals.activation == 0.375
    assert vitals.pi.item() == pytest.approx(math.exp(-0.5 * (5 / 1 + 2 * 3)))
    assert vitals.modality_pi.tolist() == pytest.approx(
        [math.exp(-0.5 * (2 + 6)), math.exp(-0.5 * (3 / 1 + 6))]  # b has no tau: it takes the step's
    )
    assert vitals.layer_pi.tolist() == pytest.approx([math.exp(-0.5 * (5 + 2 * mean)) for mean in (2, 6)])
    assert vitals.prior_std == 1.0


def test_an_absent_modality_is_no_trouble() -> None:
    vitals = measure(totals([8.0, 0.0], [4.0, 0.0], [4, 0], [0.0] * 4), measured(), ONES, 1)
    assert vitals.modality_loss[1] == 0 and vitals.modality_pi[1] == 1 and vitals.modality_targets[1] == 0
    assert vitals.main_loss == 2


def test_a_loss_with_no_distribution_at_all_is_taken_as_it_is() -> None:
    vitals = measure(totals([0.0, 1.0], [0.0, 0.0], [0, 2], [0.0] * 4), measured(), ONES, 1)
    assert vitals.tau == 0 and vitals.pi.item() == pytest.approx(math.exp(-0.5))


def test_constants_read_from_the_system_are_activation_and_threshold() -> None:
    loss, tau, surprise, activation, gate = torch.tensor([2.0, 1.6, 0.3, 0.4, -1.0])
    pi = Integrity("activation_rate", "gate_threshold")(loss, tau, surprise, activation, gate)
    torch.testing.assert_close(pi, torch.exp(-0.4 * (2.0 / 1.6 + softplus(gate) * 0.3)))
    numbers = Integrity(0.4, float(softplus(gate)))(loss, tau, surprise, activation, gate)
    torch.testing.assert_close(pi, numbers)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "gate", "gate_threshold"])
def test_another_alpha_is_refused_and_told_what_may_stand_there(value: object) -> None:
    with pytest.raises(ValueError, match=r"pi_alpha is .* at least 0, or 'activation_rate'"):
        Integrity(alpha=value)  # type: ignore[arg-type]


def test_another_gamma_is_refused_and_told_what_may_stand_there() -> None:
    with pytest.raises(ValueError, match=r"pi_gamma is 'activation_rate'.* or 'gate_threshold'"):
        Integrity(gamma="activation_rate")  # type: ignore[arg-type]


def test_the_value_of_the_gate_loss_is_the_entropy_of_the_shares() -> None:
    assert entropy_of_shares(torch.ones(8)).item() == pytest.approx(math.log(8))
    assert entropy_of_shares(torch.tensor([3.0, 0.0])) == 0
    assert entropy_of_shares(torch.zeros(4)) == 0
