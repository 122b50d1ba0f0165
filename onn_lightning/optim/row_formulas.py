"""AdamW and Muon's two passes on the rows that fire, as plain functions on tensors.

Notable:
- Whole tensors are computed and the mask chooses (`torch.where`), so the host need not know which rows fire:
  on an accelerator no step waits for it. There AdamW's loop is compiled, which makes one kernel of the chain;
  run as it stands it is the reference of the compiled loops for the CPU (`row_kernels`).
- Resting rows get their own bits back, whatever was computed for them, infinities and NaN too.
- bfloat16 parameters are moved in float32 and rounded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    masks: Sequence[Tensor],
    lr: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW on the rows that fire, in place.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: tensors of equal shapes [R, ...].
        steps: scalars, this step counted.
        masks: bool [R] each.
        lr: scalar.
        betas, eps, weight_decay: as in `torch.optim.AdamW`.
    """
    beta1, beta2 = betas
    for param, grad, exp_avg, exp_avg_sq, step, mask in zip(
        params, grads, exp_avgs, exp_avg_sqs, steps, masks, strict=True
    ):
        working = torch.promote_types(param.dtype, torch.float32)
        gradient = grad.to(working)
        correction1 = -torch.expm1(step.to(working) * math.log(beta1))
        correction2 = -torch.expm1(step.to(working) * math.log(beta2))
        mean = torch.lerp(exp_avg.to(working), gradient, 1 - beta1)
        square = exp_avg_sq.to(working) * beta2 + gradient * gradient * (1 - beta2)
        denominator = (square / correction2).sqrt() + eps
        moved = param.to(working) * (1 - lr * weight_decay) - lr / correction1 * mean / denominator
        for old, new in ((param, moved), (exp_avg, mean), (exp_avg_sq, square)):
            choose_rows(old, new, mask)


def momentum(momentum_buffer: Tensor, grad: Tensor, mask: Tensor, momentum: float) -> Tensor:
    """Muon's momentum on the rows that fire, in place, and Nesterov's look ahead of it.

    Args:
        momentum_buffer, grad: [R, D].
        mask: bool [R].
        momentum: share of the old momentum.
    Returns:
        [R, D]; zero in resting rows.
    """
    moved = torch.lerp(momentum_buffer, grad, 1 - momentum)
    choose_rows(momentum_buffer, moved, mask)
    return torch.where(mask[:, None], torch.lerp(grad, moved, momentum), 0.0)


def choose_rows(old: Tensor, new: Tensor, mask: Tensor) -> None:
    """Write `new` into the rows of `old` [R, ...] for which the mask is True."""
    rows = mask.view(-1, *[1] * (old.ndim - 1))
    old.copy_(torch.where(rows, new.to(old.dtype), old))


@functools.cache
def compiled_adamw() -> Callable[..., None]:
    """`adamw` compiled for an accelerator; its learning rate is a tensor, so no schedule recompiles it."""
    return torch.compile(adamw)
