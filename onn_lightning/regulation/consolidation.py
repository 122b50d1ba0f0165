"""`ConsolidatingWeight`: no pressure on the gates while there is much to learn, some once there is less.

    progress = slow(log L) - fast(log L)                         log ratio: 0.1 is a loss 10 % below the usual
    calm     = clamp(1 - |progress| / progress_scale, 0, 1)      0 in the first steps of a life
    excess   = clamp((mean activation - target) / band, 0, 1)
    w_gate   = high * calm * excess                                  in [0, high]

fast and slow are moving averages with bias correction.

Notable:
- The gate loss is cheap late and dear early: pressure in the first steps of a life closes gates before their
  neurons have become anything, and a few steps of it cost more than half a run of it later
  (`benchmarks/regulation.py --part gate`). So the weight waits until the loss has stopped falling fast.
- Where the world changes, the loss leaves its habit in either direction, and the weight lets go.
- Below `target` there is no pressure at all: it cannot close the last gates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onn_lightning.regulation.moving_average import MovingAverage
from onn_lightning.regulation.vitals import Vitals, is_share
from onn_lightning.regulation.weights import WeightPolicy

SMALLEST_LOSS, LARGEST_LOSS = 1e-2, 1e4
"""Nats; losses beyond count as these."""


class ConsolidatingWeight(WeightPolicy):
    """Weight of the gate loss that grows as learning slows down, towards a target of activation.

    Args:
        high: weight in full calm, far above the target.
        target: activation rate at which the pressure ends, a share of tokens in [0, 1).
        band: activation above the target at which the pressure is full.
        progress_scale: log ratio between the loss' averages at which there is no pressure yet.
        fast, slow: half-lives in steps of the averages that are compared.
    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        high: float = 0.04,
        target: float = 0.28,
        band: float = 0.1,
        progress_scale: float = 0.08,
        fast: float = 14.0,
        slow: float = 70.0,
    ) -> None:
        super().__init__(0.0, high)
        for name, value in {"band": band, "progress_scale": progress_scale, "fast": fast}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"ConsolidatingWeight.{name} is {value}: it must be above 0")
        if not slow > fast:
            raise ValueError(
                f"ConsolidatingWeight: slow ({slow} steps) must be longer than fast ({fast} steps)"
            )
        if not 0 <= target < 1:
            raise ValueError(f"ConsolidatingWeight.target is {target}: an activation rate in [0, 1)")
        self.target, self.band, self.progress_scale = target, band, progress_scale
        self.fast_loss, self.slow_loss = MovingAverage(fast), MovingAverage(slow)
        self.activation = MovingAverage(fast)

    def forward(self, vitals: Vitals) -> Tensor:
        loss, activation = vitals.main_loss.float(), vitals.activation.float()
        valid = vitals.finite & is_share(activation)
        log_loss = loss.clamp(SMALLEST_LOSS, LARGEST_LOSS).log()
        progress = self.slow_loss.update(log_loss, valid) - self.fast_loss.update(log_loss, valid)
        calm = (1 - progress.abs() / self.progress_scale).clamp(0, 1)
        # until the slow average has a history, both averages agree without meaning anything by it
        calm = torch.where(self.slow_loss.weight >= 0.5, calm, 0.0)
        excess = ((self.activation.update(activation, valid) - self.target) / self.band).clamp(0, 1)
        return self.bounds[1] * calm * excess
