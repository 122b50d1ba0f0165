"""`GateRelease`: what keeps the gate loss from closing the network for good.

    alive   = the smallest share, over all SBLs, of the neurons that fired at all in the step
              in units of the share that an SBL has to keep: max(minimum_firing, 8 / its neurons), at most 1/2
    release = min(1, L_main / minimum_loss) * clamp(alive - 1, 0, 1)

The weight of the gate loss is multiplied by it, whatever policy chose the weight.

Notable:
- The gate loss is invariant to scale: its gradient stays of the order of w_gate however small the surprise
  is. Where a batch has been learned by heart the main loss's gradients vanish, and an optimizer that
  normalises (Adam) then follows the gate loss alone, until every gate is shut; so died the published
  experiments, as tau went to 0. With the factor L_main / minimum_loss both kinds of gradient vanish alike,
  and their balance stays.
- A neuron that never fires gets no gradient and never opens again. An SBL may be sparse - each of its neurons
  firing for few tokens - and yet whole; so what is watched is not how often neurons fire but how many fire
  at all. The gate loss weakens once an SBL keeps less than twice what it has to, and is off below that.
- Without state; what is not finite counts as nothing being known, and releases.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onn_lightning.regulation.vitals import Vitals

FEWEST_NEURONS = 8
"""So many neurons an SBL has to keep, however small it is; but never more than half of them."""


class GateRelease(nn.Module):
    """Factor in [0, 1] on the weight of the gate loss.

    Args:
        minimum_firing: share of its neurons, in [0, 0.5], that every SBL has to keep firing; 0: no floor.
        minimum_loss: nats of L_main below which the gate loss fades; 0: it never does.
    Raises:
        ValueError: for values outside their range.
    """

    sizes: Tensor
    kept: Tensor

    def __init__(self, minimum_firing: float = 0.1, minimum_loss: float = 0.1) -> None:
        super().__init__()
        if not 0 <= minimum_firing <= 0.5:
            raise ValueError(f"minimum_firing is {minimum_firing}: a share of the neurons from 0 to 0.5")
        if not 0 <= minimum_loss < math.inf:
            raise ValueError(f"minimum_loss is {minimum_loss}: nats, at least 0")
        self.minimum_firing, self.minimum_loss = minimum_firing, minimum_loss

    def prepare(self, sizes: list[int]) -> None:
        """Take the layout of a network.

        Args:
            sizes: neurons of every SBL, in the order of `Vitals.neuron_activation`.
        """
        kept = [min(0.5, max(self.minimum_firing, FEWEST_NEURONS / size)) for size in sizes]
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        self.register_buffer("kept", torch.tensor(kept), persistent=False)

    def forward(self, vitals: Vitals) -> Tensor:
        """The factor, a scalar in [0, 1]."""
        release = torch.ones_like(vitals.main_loss, dtype=torch.float32)
        if self.minimum_loss > 0:
            release = release * (vitals.main_loss / self.minimum_loss).clamp(0, 1)
        if self.minimum_firing > 0:
            fired = (vitals.neuron_activation > 0).to(release.dtype)
            # unsafe: without checks that would read the sizes
            alive = torch.segment_reduce(fired, "mean", lengths=self.sizes, unsafe=True) / self.kept
            release = release * (alive.amin() - 1).clamp(0, 1)
        return torch.where(vitals.finite, release, 0.0)
