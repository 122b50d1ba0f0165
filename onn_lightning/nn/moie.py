"""Mixture of Infinite Experts: a feed-forward block of two SBLs.

Notable:
- There is no router and no list of experts: each token composes its own function out of the neurons
  of the first SBL that fire for it, and out of those of the second.
- In the normalised form an RMSNorm stands before the second SBL; without it its scores, products
  of three factors, would drift with the square of the first one's output.
"""

from __future__ import annotations

from torch import Tensor, nn

from onn_lightning.nn.norm import rms_normalize
from onn_lightning.nn.sbl import SBLForm, SBLObserver


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
        return observer(self.down, rms_normalize(inner) if self.normalize_inner else inner)
