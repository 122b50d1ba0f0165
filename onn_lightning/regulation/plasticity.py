"""Plasticity: a bounded factor on the learning rate - open when the world surprises, consolidating when not.

What PI says. PI = exp(-alpha * F) with F = L / tau + gamma * S: the loss in units of what the model
expected, plus its neurons' surprise. A calibrated model has L / tau = 1 however good it is, so the level of
F says nothing; a CHANGE of F does. Where the world turns strange, the loss leaves behind what the model
expected, and F rises above its own habit. And where the loss itself falls below its habit, there is
something to be learned.

    novelty  = fast(log(-log PI)) - slow(log(-log PI))    log ratio: 0.1 is 10 % more surprising than usual
    progress = slow(log L) - fast(log L)                  log ratio: 0.1 is a loss 10 % below the usual
    drive    = max(0, novelty - tolerance) / novelty_scale + max(0, progress - tolerance) / progress_scale
    arousal  = 1 - exp(-drive), in [0, 1)
    openness rises to arousal at once, and falls towards it by half in half_life steps
    factor   = low + (high - low) * openness, in [low, high]

fast and slow are moving averages with bias correction; `floor` is added before either logarithm. A run
begins with an openness of 1.

Notable:
- `low` > 0: no sequence of steps can put the learning rate to 0.
- alpha cancels in the difference of two averages of log(-log PI) = log(alpha * F), so PI itself is enough.
- Averages of logarithms do not let one enormous step speak for a thousand; a PI of 0 or a loss of 1e30
  counts as the end of the scale. Steps with figures that are not finite leave everything as it was.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from onn_lightning.regulation.moving_average import MovingAverage
from onn_lightning.regulation.vitals import Vitals, is_share

LARGEST_LOSS = 1e4
"""Nats; losses above count as this one."""


class PlasticityPolicy(nn.Module, ABC):
    """Chooses the factor on the learning rate of this step.

    Args:
        low, high: bounds of the factor, 0 < low <= high.
    Raises:
        ValueError: for bounds that are not finite, in the wrong order, or would stop all learning.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low <= high < math.inf:
            raise ValueError(
                f"{type(self).__name__}: factor in [{low}, {high}], give 0 < low <= high, finite: "
                "at 0 nothing would ever be learned again"
            )
        self.bounds = (float(low), float(high))

    @abstractmethod
    def forward(self, vitals: Vitals) -> Tensor:
        """Take in the vitals of a step.

        Returns:
            the factor for this step, a float32 scalar on the vitals' device, finite and inside `bounds`.
        """


class FixedPlasticity(PlasticityPolicy):
    """The same factor in every step.

    Args:
        value: the factor, > 0.
    """

    def __init__(self, value: float) -> None:
        super().__init__(value, value)

    def forward(self, vitals: Vitals) -> Tensor:
        return torch.full_like(vitals.main_loss, self.bounds[0], dtype=torch.float32)


class IntegrityPlasticity(PlasticityPolicy):
    """High while the world surprises or is being learned, relaxing to `low` while it is well predicted.

    Args:
        low, high: bounds of the factor; with a high of 1 the scheduler's learning rate is the ceiling.
        half_life: steps in which openness relaxes by half.
        fast, slow: half-lives in steps of the averages that are compared.
        novelty_scale: log ratio of F above the tolerance at which arousal is 63 %.
        progress_scale: likewise for the main loss.
        tolerance: log ratio that counts as noise, for both.
        floor: added to -log PI, and to the loss in nats, before the logarithm: figures far below are all
            alike.
    """

    openness: Tensor

    def __init__(
        self,
        low: float = 0.2,
        high: float = 1.0,
        half_life: float = 100.0,
        fast: float = 16.0,
        slow: float = 256.0,
        novelty_scale: float = 0.2,
        progress_scale: float = 0.05,
        tolerance: float = 0.02,
        floor: float = 0.05,
    ) -> None:
        super().__init__(low, high)
        positive = {
            "half_life": half_life,
            "fast": fast,
            "novelty_scale": novelty_scale,
            "progress_scale": progress_scale,
            "floor": floor,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"IntegrityPlasticity.{name} is {value}: it must be above 0")
        if not slow > fast:
            raise ValueError(
                f"IntegrityPlasticity: slow ({slow} steps) must be longer than fast ({fast} steps)"
            )
        self.keep = 0.5 ** (1 / half_life)
        self.novelty_scale, self.progress_scale = novelty_scale, progress_scale
        self.tolerance, self.floor = tolerance, floor
        self.register_buffer("openness", torch.tensor(1.0))
        self.fast_surprise, self.slow_surprise = MovingAverage(fast), MovingAverage(slow)
        self.fast_loss, self.slow_loss = MovingAverage(fast), MovingAverage(slow)

    def forward(self, vitals: Vitals) -> Tensor:
        pi, loss = vitals.pi.float(), vitals.main_loss.float()
        valid = vitals.finite & is_share(pi)
        surprise = torch.log(self.floor - pi.clamp_min(torch.finfo(torch.float32).tiny).log())
        log_loss = torch.log(self.floor + loss.clamp(0, LARGEST_LOSS))
        novelty = self.fast_surprise.update(surprise, valid) - self.slow_surprise.update(surprise, valid)
        progress = self.slow_loss.update(log_loss, valid) - self.fast_loss.update(log_loss, valid)
        drive = (novelty - self.tolerance).relu() / self.novelty_scale
        drive = drive + (progress - self.tolerance).relu() / self.progress_scale
        arousal = -torch.expm1(-drive)
        relaxed = arousal + (self.openness - arousal) * self.keep
        self.openness.copy_(torch.where(valid, torch.maximum(arousal, relaxed), self.openness))
        low, high = self.bounds
        return (low + (high - low) * self.openness).clamp(low, high)
