"""Weight policies: their formulas, their bounds under any vitals whatever, and that nothing poisons them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from handmade_vitals import ANY_VITALS, BROKEN_VITALS, vitals
from hypothesis import given, settings
from hypothesis import strategies as st

from onn_lightning.regulation import Vitals
from onn_lightning.regulation.gate_release import GateRelease
from onn_lightning.regulation.modality_weights import FixedModalityWeights, IntegrityBalance, ModalityPolicy
from onn_lightning.regulation.weights import (
    ActivationTarget,
    FixedWeight,
    IntegrityWeight,
    LossSigmoidWeight,
    NegativeLogTauWeight,
    WeightPolicy,
)

POLICIES: dict[str, Callable[[], WeightPolicy]] = {
    "fixed": lambda: FixedWeight(0.02),
    "loss sigmoid": lambda: LossSigmoidWeight(scale=0.5),
    "negative log tau": lambda: NegativeLogTauWeight(scale=0.1, maximum=3.0),
    "integrity": lambda: IntegrityWeight(0.001, 0.03),
    "activation target": lambda: ActivationTarget(rate=1.0, half_life=4),
    "activation target, mindful of quality": lambda: ActivationTarget(
        rate=1.0, half_life=4, quality_margin=0.05, quality_half_lives=(4, 16)
    ),
}
"""Controllers here are quick, so that few steps show where they lead."""

any_policy = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)


def after(policy: WeightPolicy, steps: int, step: Vitals) -> float:
    """Weight after a number of equal steps."""
    weight = torch.tensor(math.nan)
    for _ in range(steps):
        weight = policy(step)
    return float(weight)


# ---- formulas ------------------------------------------------------------------------------------


def test_a_fixed_weight_stays() -> None:
    assert after(FixedWeight(0.02), 3, vitals(main_loss=math.nan)) == pytest.approx(0.02)


@pytest.mark.parametrize("loss", [0.0, 0.5, 2.0, 9.0])
def test_the_loss_sigmoid_is_the_published_form(loss: float) -> None:
    expected = 0.5 * (1 - 1 / (1 + math.exp(-loss)))
    assert after(LossSigmoidWeight(0.5), 1, vitals(main_loss=loss)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("tau", "expected"), [(2.0, 0.0), (1.0, 0.0), (0.5, 0.0693147), (1e-3, 0.3), (1e-30, 0.3)]
)
def test_minus_log_tau_is_the_published_form_with_a_maximum(tau: float, expected: float) -> None:
    assert after(NegativeLogTauWeight(0.1, maximum=3.0), 1, vitals(tau=tau)) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_step_without_predictions_says_nothing_of_tau() -> None:
    policy = NegativeLogTauWeight()
    before = after(policy, 1, vitals(tau=0.5))
    assert after(policy, 1, vitals(tau=0.0)) == before


@pytest.mark.parametrize("integrity", [0.0, 0.25, 1.0])
def test_integrity_leads_from_one_bound_to_the_other(integrity: float) -> None:
    policy = IntegrityWeight(0.01, 0.05)
    assert after(policy, 1, vitals(pi_ema=integrity)) == pytest.approx(0.01 + 0.04 * integrity)


def test_the_weight_grows_by_the_excess_of_activation() -> None:
    """A moving average of equal figures is that figure from the first step on."""
    policy = ActivationTarget(target=0.3, rate=0.1, start=0.001, high=1.0)
    assert after(policy, 10, vitals(activation=0.8)) == pytest.approx(
        0.001 * math.exp(10 * 0.1 * 0.5), rel=1e-4
    )


def test_the_weight_is_let_go_below_the_target_without_windup() -> None:
    """However long it stood at its bound, the first step below the target moves it."""
    policy = ActivationTarget(target=0.3, high=0.05, half_life=0.1)
    assert after(policy, 3000, vitals(activation=0.9)) == pytest.approx(0.05)
    assert after(policy, 1, vitals(activation=0.1)) < 0.05 * math.exp(-0.1 * 0.19)
    assert after(policy, 5000, vitals(activation=0.1)) == pytest.approx(policy.bounds[0])
    assert after(policy, 1, vitals(activation=0.9)) > policy.bounds[0] * math.exp(0.1 * 0.59)


def test_failing_integrity_releases_the_weight() -> None:
    patient, mindful = ActivationTarget(), ActivationTarget(quality_margin=0.05)
    for integrity in [0.4] * 300 + [0.3] * 20:  # a quarter below its habit
        weights = [float(policy(vitals(activation=0.6, pi=integrity))) for policy in (patient, mindful)]
    assert weights[0] > 1.1 * weights[1]
    recovered = [after(policy, 1500, vitals(activation=0.6, pi=0.3)) for policy in (patient, mindful)]
    assert recovered[0] == pytest.approx(recovered[1])  # 0.3 has become the habit


def test_activation_settles_at_the_target_in_a_closed_loop() -> None:
    """A plant like a network's: gates close by the weight and open by the main loss, which is weaker."""
    lowest = {}
    for horizon in (0.0, 100.0):
        policy, activation = ActivationTarget(target=0.3, horizon=horizon), 0.85
        course = []
        for _ in range(1500):
            weight = float(policy(vitals(activation=activation)))
            activation += 0.002 * (0.85 - activation) - 0.2 * weight * activation
            course.append(activation)
        assert course[-1] == pytest.approx(0.3, abs=0.05)
        lowest[horizon] = min(course)
    assert lowest[0.0] < 0.2  # what comes of not looking ahead
    assert lowest[100.0] > 0.27


# ---- any vitals ----------------------------------------------------------------------------------


@any_policy
@given(steps=st.lists(ANY_VITALS, max_size=12))
@settings(max_examples=30)
def test_a_weight_is_finite_and_bounded_whatever_comes(
    make: Callable[[], WeightPolicy], steps: list[Vitals]
) -> None:
    policy = make()
    for step in steps:
        weight = float(policy(step))
        assert policy.bounds[0] * (1 - 1e-6) <= weight <= policy.bounds[1] * (1 + 1e-6)


@any_policy
@given(steps=st.lists(ANY_VITALS, max_size=12))
@settings(max_examples=15)
def test_sane_steps_bring_a_weight_back(make: Callable[[], WeightPolicy], steps: list[Vitals]) -> None:
    """After anything at all, sane steps lead to where they lead a policy that saw nothing else."""
    sane, policy = vitals(activation=0.5), make()
    for step in steps:
        policy(step)
    assert after(policy, 150, sane) == pytest.approx(after(make(), 150, sane), rel=1e-3)


@any_policy
@given(step=BROKEN_VITALS)
@settings(max_examples=5)
def test_a_broken_step_leaves_the_state_as_it_was(make: Callable[[], WeightPolicy], step: Vitals) -> None:
    policy = make()
    weight = after(policy, 5, vitals())
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    assert after(policy, 3, step) == pytest.approx(weight)
    assert all(torch.equal(value, state[name]) for name, value in policy.state_dict().items())


@any_policy
def test_constants_come_from_the_config_and_state_from_the_checkpoint(
    make: Callable[[], WeightPolicy],
) -> None:
    policy, resumed = make(), make()
    after(policy, 7, vitals(activation=0.8))
    resumed.load_state_dict(policy.state_dict())
    assert after(policy, 3, vitals()) == after(resumed, 3, vitals())
    assert not FixedWeight(1.0).state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedWeight(-1.0), "0 <= low <= high"),
        (lambda: FixedWeight(math.nan), "0 <= low <= high"),
        (lambda: IntegrityWeight(0.1, 0.01), "0 <= low <= high"),
        (lambda: NegativeLogTauWeight(maximum=math.inf), "finite"),
        (lambda: ActivationTarget(low=0.0), "0 < low"),
        (lambda: ActivationTarget(start=1.0), "start"),
        (lambda: ActivationTarget(target=0.0), "between 0 and 1"),
        (lambda: ActivationTarget(rate=0.0), "above 0"),
        (lambda: ActivationTarget(half_life=0.0), "above 0"),
        (lambda: IntegrityBalance(low=1.5), "low <= 1"),
        (lambda: IntegrityBalance(strength=-1.0), ">= 0"),
        (lambda: FixedModalityWeights({"text": -1.0}), "'text'"),
        (lambda: GateRelease(minimum_firing=0.9), "0 to 0.5"),
        (lambda: GateRelease(minimum_loss=-1.0), "at least 0"),
    ],
)
def test_impossible_constants_are_refused(make: Callable[[], WeightPolicy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- the release of the gate loss ----------------------------------------------------------------


def release(sizes: list[int], **figures: float | list[float]) -> float:
    """Of a network of two SBLs, with a floor of 0.2 and a loss of 0.2 nats."""
    rule = GateRelease(minimum_firing=0.2, minimum_loss=0.2)
    rule.prepare(sizes)
    return float(rule(vitals(**figures)))


@pytest.mark.parametrize(("firing", "expected"), [(0, 0), (20, 0), (25, 0.25), (30, 0.5), (40, 1), (100, 1)])
def test_the_layer_with_the_fewest_firing_neurons_decides_on_the_gate_loss(
    firing: int, expected: float
) -> None:
    """However rarely they fire: of 100 neurons in the second layer some do for one token in ten thousand."""
    neurons = [0.5] * 50 + [1e-4] * firing + [0.0] * (100 - firing)
    assert release([50, 100], neuron_activation=neurons) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("firing", "expected"), [(8, 0), (12, 0.5), (16, 1)])
def test_a_small_layer_keeps_eight_neurons(firing: int, expected: float) -> None:
    neurons = [0.5] * 16 + [0.5] * firing + [0.0] * (16 - firing)
    assert release([16, 16], neuron_activation=neurons) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 0), (0.05, 0.25), (0.2, 1), (7.0, 1), (1e30, 1)])
def test_the_gate_loss_fades_with_the_main_loss(loss: float, expected: float) -> None:
    assert release([2, 4], main_loss=loss) == pytest.approx(expected)


@given(step=ANY_VITALS)
def test_the_release_is_a_factor_between_0_and_1_whatever_comes(step: Vitals) -> None:
    rule = GateRelease()
    rule.prepare([2, 4])
    assert 0 <= float(rule(step)) <= 1


# ---- modalities ----------------------------------------------------------------------------------


def balance(base: tuple[float, float] = (1.0, 1.0), **options: float) -> IntegrityBalance:
    policy = IntegrityBalance(**options)
    policy.prepare(torch.tensor(base), ("text", "patch"))
    return policy


def test_the_modality_that_is_predicted_worse_weighs_more_at_the_same_mean() -> None:
    text, patch = balance(strength=2.0)(vitals(modality_pi=[0.3, 0.7])).tolist()
    assert text / patch == pytest.approx(math.exp(2 * 0.4), rel=1e-5)
    assert (text + patch) / 2 == pytest.approx(1.0)


def test_factors_apply_to_the_configured_weights() -> None:
    plain = balance()(vitals())
    weighted = balance(base=(0.5, 3.0))(vitals())
    torch.testing.assert_close(weighted, plain * torch.tensor([0.5, 3.0]))


def test_bounds_hold_without_moving_the_mean() -> None:
    weights = balance(strength=50.0, low=0.8, high=3.0)(vitals(modality_pi=[0.0, 1.0])).tolist()
    assert weights == pytest.approx([1.2, 0.8])


def test_an_absent_modality_keeps_its_average_and_its_weight() -> None:
    policy = balance()
    before = policy(vitals())
    assert before[0] != 1
    for _ in range(50):
        alone = policy(vitals(modality_targets=[10.0, 0.0], modality_pi=[0.05, 1.0]))
    assert alone[1] == before[1]
    torch.testing.assert_close(alone, before)  # nobody to share with: the one that is there keeps its own
    assert policy.integrity.value[1] == pytest.approx(0.7)


@given(steps=st.lists(ANY_VITALS, max_size=12))
@settings(max_examples=30)
def test_modality_weights_are_bounded_and_keep_their_mean_whatever_comes(steps: list[Vitals]) -> None:
    policy = balance(base=(0.5, 3.0), half_life=2)
    for step in steps:
        factors = policy(step) / policy.base
        assert all(0.5 - 1e-5 <= factor <= 2 + 1e-5 for factor in factors.tolist())
        assert float(factors.mean()) == pytest.approx(1.0, abs=1e-4)
    for _ in range(40):
        weights = policy(vitals())
    torch.testing.assert_close(weights, balance(base=(0.5, 3.0))(vitals()), rtol=1e-3, atol=1e-4)


def test_no_step_with_targets_leaves_all_weights() -> None:
    policy: ModalityPolicy = balance(base=(0.5, 3.0))
    assert policy(vitals(modality_targets=[0.0, 0.0])).tolist() == [0.5, 3.0]


def test_fixed_modality_weights_replace_those_of_the_module_by_name() -> None:
    policy = FixedModalityWeights({"patch": 4.0})
    policy.prepare(torch.tensor([0.5, 3.0]), ("text", "patch"))
    assert policy(vitals()).tolist() == [0.5, 4.0]
    with pytest.raises(ValueError, match="sound"):
        FixedModalityWeights({"sound": 1.0}).prepare(torch.ones(2), ("text", "patch"))
