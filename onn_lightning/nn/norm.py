"""Root-mean-square normalisation without weights of its own, in few passes over memory.

Notable:
- The scale of a row is computed in float32 by a norm reduction, never by squaring in place, so no
  temporary of the row's size is made.
- The backward pass is written out: two reductions and one fused update in place of the chain that
  autograd would record (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).
- No learned scale: every norm here feeds a linear layer, whose weights can hold the same scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RMSNormalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(
            x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
        )
        scale = (norm.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)  # [..., 1]
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        # d(x / rms): remove the component along y, then rescale
        along = torch.linalg.vecdot(grad, y).unsqueeze(-1) / y.shape[-1]
        return torch.addcmul(grad, y, along, value=-1).mul_(scale), None


def rms_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last dimension, in x's type."""
    return _RMSNormalize.apply(x, eps)
