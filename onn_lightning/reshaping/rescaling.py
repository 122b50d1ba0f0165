"""How the numbers of a parameter change where its layer gets wider or narrower, and its gradients with them.

Let s = sqrt(F' / F) for a feed-forward that goes from F to F' neurons, those that come or go being silent.

- Normalised form: the norm before `moie.down` divides by sqrt(sum over neurons / F), so its output grows by
  s. Scores and values of `down` are linear in mu_weight: divided by s, they stay what they were.
- Reference form: there is no norm, but the scores of `down` are scaled by 1 / sqrt(F). Values do not
  depend on it, so it is sigma = softplus(sigma_weight) that is multiplied by s.

Where a parameter p becomes p' and the function stays the same, the gradient with respect to p' is that with
respect to p times dp / dp'. First moments scale with it, second moments with its square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Rescaling(Protocol):
    """A change of numbers, element by element, and of the gradients with respect to them."""

    def values(self, old: Tensor) -> Tensor:
        """The new numbers for old ones, in their type."""

    def gradients(self, old: Tensor) -> Tensor:
        """dp / dp' at old numbers: what gradients are multiplied by; broadcasts to them."""


@dataclass(frozen=True)
class Multiplied:
    """p' = factor * p."""

    factor: float

    def values(self, old: Tensor) -> Tensor:
        return (old.double() * self.factor).to(old.dtype)

    def gradients(self, old: Tensor) -> Tensor:
        return torch.tensor(1 / self.factor, dtype=torch.float64, device=old.device)


@dataclass(frozen=True)
class SoftplusMultiplied:
    """softplus(p') = factor * softplus(p)."""

    factor: float

    def _new(self, old: Tensor) -> Tensor:
        sigma = F.softplus(old.double(), threshold=40.0) * self.factor
        sigma.clamp_min_(torch.finfo(sigma.dtype).tiny)  # where the old one underflows
        return sigma + torch.log(-torch.expm1(-sigma))  # inverse of softplus

    def values(self, old: Tensor) -> Tensor:
        return self._new(old).to(old.dtype)

    def gradients(self, old: Tensor) -> Tensor:
        # softplus' = sigmoid: factor * sigmoid(p) dp = sigmoid(p') dp'
        return torch.sigmoid(self._new(old)) / (self.factor * torch.sigmoid(old.double()))
