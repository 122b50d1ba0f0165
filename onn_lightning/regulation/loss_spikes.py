"""`SpikeRule`: whether the loss of a step stands far above what the steps before it let expect.

For each modality by itself, with x its loss in this step, m a moving average of its losses and s 1.25 times
that of |x - m| (the standard deviation, were they normal), the step spikes if

    x > m + z * s   and   x > ratio * m.

Notable:
- Robust: from the end of the warm-up on, m and s take in x only as far as m - 3 s ... m + 3 s. A spike so
  moves what is expected but little, while a new level of the loss is accepted after a few dozen steps.
- m has the shorter memory: while the loss still falls, what it lags behind passes for deviation.
- By modality, since L_main is another sum in a step in which one of them is absent.
- In the first steps averages are plain means, and nothing spikes before `warmup_steps` losses are known.
- A loss that is not finite is no loss: it is left to `SkipBrokenSteps`. A step without any changes nothing.
- All state is in buffers on the training device, and nothing is read from it: the answers are tensors.

Letters: H modalities that have a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onn_lightning.regulation.vitals import Vitals

_DEVIATION = 1.25  # standard deviation over mean absolute deviation of normal numbers, about sqrt(pi / 2)
_TAKEN = 3.0  # deviations up to which a loss is taken in


@dataclass(frozen=True)
class Spike:
    """What the rule says of one step.

    Args:
        spiking: [H] bool.
        loss: [H] nats.
        expected: [H] m before this step, nats.
        in_a_row: scalar int64, steps that spiked one after another, this one included.
    """

    spiking: Tensor
    loss: Tensor
    expected: Tensor
    in_a_row: Tensor


class SpikeRule(nn.Module):
    """Marks loss spikes; the formula stands at the top of this file.

    Args:
        z: deviations above the average.
        ratio: factor above the average.
        half_life: of the average, steps.
        deviation_half_life: of the deviation, steps.
        warmup_steps: losses of a modality before one of them can be a spike.
    Raises:
        ValueError: if a number is out of range.
    """

    average: Tensor
    deviation: Tensor
    seen: Tensor
    in_a_row: Tensor

    def __init__(
        self,
        z: float = 6.0,
        ratio: float = 1.25,
        half_life: float = 20.0,
        deviation_half_life: float = 50.0,
        warmup_steps: int = 50,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("z", z, 0.0),
            ("ratio", ratio, 1.0),
            ("half_life", half_life, 1.0),
            ("deviation_half_life", deviation_half_life, 1.0),
            ("warmup_steps", warmup_steps, 2),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"SpikeRule: {name} is {value}, it must be at least {least}")
        self.z, self.ratio, self.warmup_steps = z, ratio, warmup_steps
        self.rate = 1 - 0.5 ** (1 / half_life)
        self.deviation_rate = 1 - 0.5 ** (1 / deviation_half_life)
        for name in ("average", "deviation", "seen"):
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("in_a_row", torch.zeros((), dtype=torch.int64))

    def observe(self, modalities: int) -> None:
        """Say how many modalities have a loss; needed before the first step of every start."""
        if len(self.seen) != modalities:
            self.average, self.deviation, self.seen = torch.zeros(3, modalities, device=self.seen.device)

    @torch.no_grad()
    def forward(self, vitals: Vitals) -> Spike:
        """Take one step in."""
        loss = vitals.modality_loss.float()
        there = (vitals.modality_targets > 0) & torch.isfinite(loss)
        warm = self.seen >= self.warmup_steps
        expected, band = self.average, _TAKEN * self.deviation
        spiking = there & warm & (loss > expected + self.z * self.deviation) & (loss > self.ratio * expected)

        taken = torch.where(warm, loss.clamp(expected - band, expected + band), loss)
        first = 1 / (self.seen + 1)
        distance = _DEVIATION * (taken - expected).abs()
        deviation = self.deviation.lerp(distance, first.clamp_min(self.deviation_rate))
        deviation = torch.where(self.seen > 0, deviation, 0.0)  # the first loss has nothing to deviate from
        average = expected.lerp(taken, first.clamp_min(self.rate))
        self.average = torch.where(there, average, expected)
        self.deviation = torch.where(there, deviation, self.deviation)
        self.seen = self.seen + there
        in_a_row = torch.where(spiking.any(), self.in_a_row + 1, 0)
        self.in_a_row = torch.where(there.any(), in_a_row, self.in_a_row)
        return Spike(spiking, loss, expected, self.in_a_row)
