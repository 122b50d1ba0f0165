"""`GateRelease`: what keeps the gate loss from closing the network for good.

    release = min(1, L_main / minimum_loss) * clamp(a / minimum_activation - 1, 0, 1)

a: activation of the sparsest SBL. The weight of the gate loss is multiplied by it, whatever policy chose the
weight.

Notable:
- The gate loss is invariant to scale: its gradient stays of the order of w_gate however small the surprise
  is. Where a batch has been learned by heart the main loss's gradients vanish, and an optimizer that
  normalises (Adam) then follows the gate loss alone, until every gate is shut; so died the published
  experiments, as tau went to 0. With the factor L_main / minimum_loss both kinds of gradient vanish alike,
  and their balance stays.
- A neuron that never fires gets no gradient and never opens again, and an SBL without neurons passes nothing
  on. So the gate loss weakens once the sparsest SBL fires for less than twice the minimum, and is off below
  the minimum.
- Without state; what is not finite counts as nothing being known, and releases.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onn_lightning.regulation.vitals import Vitals


class GateRelease(nn.Module):
    """Factor in [0, 1] on the weight of the gate loss.

    Args:
        minimum_activation: share of tokens, in [0, 0.5], that the sparsest SBL keeps firing for; 0: no such
            floor.
        minimum_loss: nats of L_main below which the gate loss fades; 0: it never does.
    Raises:
        ValueError: for values outside their range.
    """

    sizes: Tensor

    def __init__(self, minimum_activation: float = 0.05, minimum_loss: float = 0.1) -> None:
        super().__init__()
        if not 0 <= minimum_activation <= 0.5:
            raise ValueError(f"minimum_activation is {minimum_activation}: a share of tokens from 0 to 0.5")
        if not 0 <= minimum_loss < math.inf:
            raise ValueError(f"minimum_loss is {minimum_loss}: nats, at least 0")
        self.minimum_activation, self.minimum_loss = minimum_activation, minimum_loss

    def prepare(self, sizes: list[int]) -> None:
        """Take the layout of a network.

        Args:
            sizes: neurons of every SBL, in the order of `Vitals.neuron_activation`.
        """
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)

    def forward(self, vitals: Vitals) -> Tensor:
        """The factor, a scalar in [0, 1]."""
        release = torch.ones_like(vitals.main_loss, dtype=torch.float32)
        if self.minimum_loss > 0:
            release = release * (vitals.main_loss / self.minimum_loss).clamp(0, 1)
        if self.minimum_activation > 0:
            # unsafe: without checks that would read the sizes
            means = torch.segment_reduce(vitals.neuron_activation, "mean", lengths=self.sizes, unsafe=True)
            release = release * (means.amin() / self.minimum_activation - 1).clamp(0, 1)
        return release.nan_to_num(0.0)
