"""Policies for the weights of the gate loss and of the KL term: one number out of the vitals of a step.

| policy | weight | bounds |
|---|---|---|
| `FixedWeight` | value | [value, value] |
| `LossSigmoidWeight` | scale * (1 - sigmoid(L_main)) | [0, scale / 2] |
| `NegativeLogTauWeight` | scale * clamp(-log tau, 0, maximum) | [0, scale * maximum] |
| `IntegrityWeight` | low + (high - low) * mean PI | [low, high] |
| `ActivationTarget` | w *= exp(rate * (activation ahead - target)) | [low, high] |

Notable:
- Every policy is finite and inside its `bounds` for any vitals whatever; a step whose figures are broken (not
  finite, or outside what they can be) leaves its state as it was.
- State lies in buffers, constants in plain attributes: a resumed run goes on from the state of the checkpoint
  and takes the constants of its config.
- Nothing reads a number out of a tensor: a policy costs a handful of tiny kernels and no synchronisation.
- `ActivationTarget` is the one that closes the loop. The gate loss is as strong as it takes to bring the
  activation down to the target, and lets go when the activation is below.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from onn_lightning.regulation.moving_average import MovingAverage
from onn_lightning.regulation.vitals import Vitals, is_share


class WeightPolicy(nn.Module, ABC):
    """Chooses one weight for the next step.

    Args:
        low, high: bounds of the weight, 0 <= low <= high.
    Raises:
        ValueError: for bounds that are not finite or in the wrong order.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"{type(self).__name__}: bounds [{low}, {high}], give 0 <= low <= high, finite")
        self.bounds = (float(low), float(high))

    @abstractmethod
    def forward(self, vitals: Vitals) -> Tensor:
        """Take in the vitals of a step.

        Returns:
            the weight for the next one, a float32 scalar on the vitals' device, finite and inside `bounds`.
        """


class FixedWeight(WeightPolicy):
    """The same weight in every step.

    Args:
        value: the weight, >= 0.
    """

    def __init__(self, value: float) -> None:
        super().__init__(value, value)

    def forward(self, vitals: Vitals) -> Tensor:
        return torch.full_like(vitals.main_loss, self.bounds[0], dtype=torch.float32)


class _HeldWeight(WeightPolicy):
    """A weight that is a function of the newest step, and stays as it was where that step is broken.

    Before the first whole step it is `low`.
    """

    held: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__(low, high)
        self.register_buffer("held", torch.tensor(self.bounds[0]))

    def _hold(self, weight: Tensor, valid: Tensor) -> Tensor:
        self.held.copy_(torch.where(valid, weight.clamp(*self.bounds), self.held))
        return self.held.clone()


class LossSigmoidWeight(_HeldWeight):
    """w = scale * (1 - sigmoid(L_main)): weak while the loss is large.

    Args:
        scale: twice the weight at a loss of 0.
    Source: the published experiments (scale 1).
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(0.0, scale / 2)
        self.scale = scale

    def forward(self, vitals: Vitals) -> Tensor:
        return self._hold(self.scale * torch.sigmoid(-vitals.main_loss.clamp_min(0)), vitals.finite)


class NegativeLogTauWeight(_HeldWeight):
    """w = scale * clamp(-log tau, 0, maximum): strong once the predictions are certain.

    A tau of exactly 0 is that of a step in which no head predicts a distribution; it leaves the weight as it
    is.

    Args:
        scale: factor.
        maximum: bound of -log tau in nats of log tau; 5: at a tau of 0.0067 nats.
    Source: the published experiments (scale 1, no maximum: as tau went to 0 the gates died of it).
    """

    def __init__(self, scale: float = 1.0, maximum: float = 5.0) -> None:
        super().__init__(0.0, scale * maximum)
        self.scale, self.maximum = scale, maximum

    def forward(self, vitals: Vitals) -> Tensor:
        tau = vitals.tau
        weight = self.scale * (-tau.log()).clamp(0, self.maximum)
        return self._hold(weight, vitals.finite & (tau > 0))


class IntegrityWeight(_HeldWeight):
    """w = low + (high - low) * PI, of PI's moving average: pressure on a healthy system, less on another.

    Args:
        low: weight at a PI of 0.
        high: weight at a PI of 1.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__(low, high)

    def forward(self, vitals: Vitals) -> Tensor:
        low, high = self.bounds
        return self._hold(low + (high - low) * vitals.pi_ema, vitals.finite & is_share(vitals.pi_ema))


class ActivationTarget(WeightPolicy):
    """w *= exp(rate * (activation ahead - target)), clamped: as strong as it takes, and no stronger.

    An integral controller in log space. Above the target the weight grows by a constant factor a step for as
    long as it takes; below it, it falls likewise. The clamp is also the anti-windup: a weight at a bound
    leaves it with the first step on the other side of the target.

    Args:
        target: activation rate aimed at, a share of tokens in (0, 1).
        low, high: bounds of the weight, 0 < low.
        rate: growth of log w a step for every unit of activation above the target; at 0.1, an activation of
            0.6 against a target of 0.3 multiplies the weight by 10 in 77 steps.
        horizon: steps ahead; what is held against the target is the activation that its present change leads
            to by then. Gates close faster than they open, so 0 - no looking ahead - overshoots the target.
        start: weight before the first step.
        half_life: steps, of the moving average of the activation.
        quality_margin: None, or the share by which PI's fast average may lie below its slow one; beyond, the
            weight falls as though nothing fired.
        quality_half_lives: steps, of the fast and of the slow average of PI.
    """

    log_weight: Tensor

    def __init__(
        self,
        target: float = 0.3,
        low: float = 1e-6,
        high: float = 0.1,
        rate: float = 0.1,
        horizon: float = 100.0,
        start: float = 1e-3,
        half_life: float = 8.0,
        quality_margin: float | None = None,
        quality_half_lives: tuple[float, float] = (16.0, 256.0),
    ) -> None:
        super().__init__(low, high)
        if not 0 < low <= start <= high:
            raise ValueError(
                f"ActivationTarget: low {low}, start {start}, high {high}: 0 < low <= start <= high"
            )
        if not 0 < target < 1:
            raise ValueError(f"ActivationTarget.target is {target}: an activation rate between 0 and 1")
        if not 0 < rate < math.inf:
            raise ValueError(f"ActivationTarget.rate is {rate}: it must be above 0")
        if not 0 <= horizon < math.inf:
            raise ValueError(f"ActivationTarget.horizon is {horizon}: a number of steps of at least 0")
        self.target, self.rate, self.horizon, self.quality_margin = target, rate, horizon, quality_margin
        self.register_buffer("log_weight", torch.tensor(math.log(start)))
        self.activation = MovingAverage(half_life)
        self.fast_pi, self.slow_pi = (MovingAverage(steps) for steps in quality_half_lives)

    def forward(self, vitals: Vitals) -> Tensor:
        valid = vitals.finite & is_share(vitals.activation)
        before, known = self.activation.value, self.activation.weight > 0
        activation = self.activation.update(vitals.activation, valid)
        change = torch.where(known, activation - before, 0.0)
        error = activation + self.horizon * change - self.target
        if self.quality_margin is not None:
            seen = valid & is_share(vitals.pi)
            fast, slow = (average.update(vitals.pi, seen) for average in (self.fast_pi, self.slow_pi))
            error = torch.where(fast < (1 - self.quality_margin) * slow, -self.target, error)
        low, high = self.bounds
        moved = (self.log_weight + self.rate * error).clamp(math.log(low), math.log(high))
        self.log_weight.copy_(torch.where(valid, moved, self.log_weight))
        return self.log_weight.exp().clamp(low, high)  # exp(log(high)) may round to above high
