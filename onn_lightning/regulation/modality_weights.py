"""Policies for the weights of the modalities' losses.

| policy | weight of modality h | bounds |
|---|---|---|
| `FixedModalityWeights` | base_h | - |
| `IntegrityBalance` | base_h * r_h, r_h proportional to exp(-strength * mean PI_h) | base_h * [low, high] |

Notable:
- Shares are only moved among the modalities that a step holds: their mean factor stays what it was, that is 1
  where all are there. An absent modality keeps its average and its factor.
- Bounds and mean hold at once: where a share would leave its bounds, all are drawn towards their mean alike.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onn_lightning.regulation.moving_average import MovingAverage
from onn_lightning.regulation.vitals import Vitals, is_share


class ModalityPolicy(nn.Module, ABC):
    """Chooses the weights of the modalities' losses for the next step."""

    base: Tensor

    def prepare(self, base: Tensor, modalities: tuple[str, ...]) -> None:
        """Make the state for a run.

        Args:
            base: [H] configured weights.
            modalities: names of the modalities that have a head, in the order of `base`.
        """
        self.register_buffer("base", base.detach().clone())

    @abstractmethod
    def forward(self, vitals: Vitals) -> Tensor:
        """Take in the vitals of a step.

        Returns:
            [H] weights for the next one, finite.
        """


class FixedModalityWeights(ModalityPolicy):
    """The same weights in every step, whatever a checkpoint says.

    Args:
        weights: by name of the modality; the module's own where absent.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.weights = dict(weights or {})
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"FixedModalityWeights: the weight of {name!r} is {weight}: give one >= 0")

    def prepare(self, base: Tensor, modalities: tuple[str, ...]) -> None:
        """Raises: ValueError, for the weight of a modality that has no loss."""
        unknown = set(self.weights) - set(modalities)
        if unknown:
            raise ValueError(
                f"FixedModalityWeights names {sorted(unknown)}, "
                f"the losses of the run are of {sorted(modalities)}"
            )
        values = [self.weights.get(name, float(own)) for name, own in zip(modalities, base, strict=True)]
        self.register_buffer("base", base.new_tensor(values), persistent=False)

    def forward(self, vitals: Vitals) -> Tensor:
        return self.base.clone()


class IntegrityBalance(ModalityPolicy):
    """More weight for the modalities that are predicted worse than the others.

    Args:
        strength: how steeply; at 2, a PI lower by 0.35 doubles the weight.
        low, high: bounds of the factor on a configured weight, 0 < low <= 1 <= high.
        half_life: steps, of the moving average of a modality's PI; steps without it do not count.
    """

    factors: Tensor

    def __init__(
        self, strength: float = 2.0, low: float = 0.5, high: float = 2.0, half_life: float = 64.0
    ) -> None:
        super().__init__()
        if not 0 < low <= 1 <= high < math.inf:
            raise ValueError(f"IntegrityBalance: low {low}, high {high}: give 0 < low <= 1 <= high")
        if not 0 <= strength < math.inf:
            raise ValueError(f"IntegrityBalance.strength is {strength}: it must be >= 0")
        self.strength, self.half_life = strength, half_life
        self.bounds = (low, high)

    def prepare(self, base: Tensor, modalities: tuple[str, ...]) -> None:
        """See `ModalityPolicy.prepare`."""
        super().prepare(base, modalities)
        self.integrity = MovingAverage(self.half_life, tuple(base.shape)).to(base.device)
        self.register_buffer("factors", torch.ones_like(base))

    def forward(self, vitals: Vitals) -> Tensor:
        pi = vitals.modality_pi
        present = vitals.finite & (vitals.modality_targets > 0) & is_share(pi)
        wanted = torch.exp(-self.strength * self.integrity.update(pi, present))  # [H]
        mean = _mean_where(self.factors, present)
        shares = wanted * mean / _mean_where(wanted, present)
        self.factors.copy_(torch.where(present, self._within_bounds(shares, mean, present), self.factors))
        return self.base * self.factors

    def _within_bounds(self, shares: Tensor, mean: Tensor, present: Tensor) -> Tensor:
        """Draw shares towards their mean, all alike, until none is outside the bounds."""
        low, high = self.bounds
        distance = shares - mean
        room = torch.where(distance > 0, high - mean, mean - low).clamp_min(0)
        reach = torch.where(present, room / distance.abs().clamp_min(1e-12), 1.0).amin().clamp_max(1)
        return (mean + reach * distance).clamp(low, high)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen; 0 where there is none."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)
