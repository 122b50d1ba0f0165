"""Mixture of Infinite Experts: a feed-forward block of two SBLs.

Notable:
- There is no router and no list of experts: each token composes its own function out of the neurons
  of the first SBL that fire for it, and out of those of the second.
- In the normalised form an RMSNorm stands before the second SBL; without it its scores, products
  of three factors, would drift with the square of the first one's output.
- What keeps that norm from dividing by 0 is added to the SUM of squares, not to their mean: then neurons
  that put out nothing, whether they are there or not, only scale what the norm returns, all of it alike.
"""

from __future__ import annotations

from torch import Tensor, nn

from onn_lightning.nn.norm import rms_normalize
from onn_lightning.nn.sbl import SBLForm, SBLObserver

INNER_EPS = 512 * 1e-6
"""Added to the sum of squares of the inner activations: 1e-6 on their mean at F = 512."""


class MoIE(nn.Module):
    """up: D -> F neurons, down: F -> D neurons.

    Args:
        hidden_size: D.
        intermediate_size: F.
        form: form and initial values of both SBLs.
        output_scale: factor on the initial weights of the SBL that writes to the residual stream.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, form: SBLForm | None = None, output_scale: float = 1.0
    ) -> None:
        super().__init__()
        form = form or SBLForm()
        self.up = form.build(hidden_size, intermediate_size)
        self.down = form.build(intermediate_size, hidden_size, output_scale)
        self.normalize_inner = form.normalized

    def forward(self, x: Tensor, observer: SBLObserver | None = None) -> Tensor:
        """[..., D] -> [..., D]."""
        observer = observer or SBLObserver()
        inner = observer(self.up, x)
        if self.normalize_inner:
            inner = rms_normalize(inner, INNER_EPS / inner.shape[-1])
        return observer(self.down, inner)
