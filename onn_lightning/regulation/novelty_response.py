"""`NoveltyResponse`: one learning rate while the world is as usual, another once it turned strange.

    F       = L / tau + gamma * S = -log PI / alpha
    novelty = log F - slow(log F)                     log ratio: 0.1 is 10 % more surprising than usual
    shock   = 1 - exp(-max(0, novelty - tolerance) / novelty_scale)                   in [0, 1)
    alarm   = shock where that is higher, otherwise what is left of it: half after half_life steps
    factor  = calm + (alarmed - calm) * alarm

Notable:
- What it is for: a new domain sends large gradients through the mean weights of the trunk, which all domains
  share, and what they overwrite is what the old ones left there. With `alarmed` < 1 for the group "matrix"
  and > 1 for "embedding" the new domain is taken up by the entrance, the thresholds and the uncertainties,
  and the old one is kept (`benchmarks/regulation.py --part continual`).
- It answers at once: habit is compared with this very step, whose gradient is about to be applied.
- A world that is only a little strange causes little alarm: plays after poems are learned as freely as ever.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onn_lightning.regulation.moving_average import MovingAverage
from onn_lightning.regulation.plasticity import PlasticityPolicy
from onn_lightning.regulation.vitals import Vitals, is_share


class NoveltyResponse(PlasticityPolicy):
    """From `calm` to `alarmed` when PI breaks with its habit, and slowly back.

    Args:
        alarmed: factor in full alarm, > 0; above or below `calm`.
        calm: factor while the world is as usual, > 0.
        half_life: steps in which the alarm fades by half.
        slow: half-life in steps of F's habit.
        novelty_scale: log ratio of F above the tolerance at which the shock is 63 %.
        tolerance: log ratio that counts as noise.
    Raises:
        ValueError: if a number is out of range.
    """

    alarm: Tensor

    def __init__(
        self,
        alarmed: float,
        calm: float = 1.0,
        half_life: float = 1000.0,
        slow: float = 64.0,
        novelty_scale: float = 0.5,
        tolerance: float = 0.15,
    ) -> None:
        super().__init__(min(calm, alarmed), max(calm, alarmed))
        for name, value in {"half_life": half_life, "slow": slow, "novelty_scale": novelty_scale}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"NoveltyResponse.{name} is {value}: it must be above 0")
        self.calm, self.alarmed = float(calm), float(alarmed)
        self.keep = 0.5 ** (1 / half_life)
        self.novelty_scale, self.tolerance = novelty_scale, tolerance
        self.register_buffer("alarm", torch.tensor(0.0))
        self.habit = MovingAverage(slow)

    def forward(self, vitals: Vitals) -> Tensor:
        pi = vitals.pi.float()
        valid = vitals.finite & is_share(pi)
        # a PI of 0 or 1 counts as the end of the scale
        log_surprise = (-pi.clamp(torch.finfo(torch.float32).tiny, 1 - 1e-6).log()).log()
        known = self.habit.weight >= 0.5  # before that there is no habit to break with
        novelty = torch.where(known & valid, log_surprise - self.habit.value, 0.0)
        self.habit.update(log_surprise, valid)
        shock = -torch.expm1(-(novelty - self.tolerance).relu() / self.novelty_scale)
        self.alarm.copy_(torch.where(valid, torch.maximum(shock, self.alarm * self.keep), self.alarm))
        return (self.calm + (self.alarmed - self.calm) * self.alarm).clamp(*self.bounds)
