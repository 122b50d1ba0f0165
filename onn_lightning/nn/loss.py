"""Losses of the free energy: chunked linear cross-entropy, Gaussian KL, predictive integrity.

Notable:
- The logits [M, vocabulary] never exist at once: rows go through in chunks.
- A chunk's logits become its gradient on the spot, in the forward pass, so that they need not be made
  twice: the gradient of a row scales with that row's upstream gradient, whatever it is, and that of
  the table with the common one where the losses are summed or averaged, which is the rule. Only for
  upstream gradients that differ from row to row does backward make the logits again.
- Entropy (for tau) and hits come out of the same chunk, without a second product.
- Sums that decide something are taken in float32 whatever the type of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 4_000_000
"""Logits made at a time: 16 MB in float32, enough rows for an efficient product at 20k symbols."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        statistics_type = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.empty(len(hidden), dtype=statistics_type, device=hidden.device)
        entropy, best = torch.empty_like(loss), torch.empty_like(targets)
        log_normalizer = torch.empty_like(loss)
        differentiable = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if differentiable else None
        grad_weight = torch.zeros_like(weight, dtype=statistics_type) if differentiable else None
        for chunk in _chunks(hidden, weight):
            logits = (hidden[chunk] @ weight.T).to(statistics_type)
            log_probabilities = logits.log_softmax(dim=-1)
            chosen = log_probabilities.gather(-1, targets[chunk, None]).squeeze(-1)
            loss[chunk] = -chosen
            # any logit and its log-probability differ by log Z
            log_normalizer[chunk] = logits.gather(-1, targets[chunk, None]).squeeze(-1) - chosen
            best[chunk] = log_probabilities.argmax(dim=-1)
            probabilities = torch.exp(log_probabilities, out=logits)
            entropy[chunk] = -torch.linalg.vecdot(probabilities, log_probabilities)
            if grad_hidden is not None and grad_weight is not None:
                _accumulate(
                    probabilities,
                    targets[chunk],
                    None,
                    hidden[chunk],
                    weight,
                    grad_hidden[chunk],
                    grad_weight,
                )
        ctx.save_for_backward(hidden, weight, targets, log_normalizer, grad_hidden, grad_weight)
        ctx.mark_non_differentiable(entropy, best)
        return loss, entropy, best

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        grad_loss = grads[0]
        hidden, weight, targets, log_normalizer, grad_hidden, grad_weight = ctx.saved_tensors
        if len(grad_loss) and grad_loss.stride(0) == 0:  # one number for all rows, known without reading it
            scale = grad_loss[0]
            return grad_hidden * scale.to(hidden.dtype), (grad_weight * scale).to(weight.dtype), None
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(grad_weight)
        for chunk in _chunks(hidden, weight):
            logits = (hidden[chunk] @ weight.T).to(log_normalizer.dtype)
            probabilities = logits.sub_(log_normalizer[chunk, None]).exp_()
            _accumulate(
                probabilities,
                targets[chunk],
                grad_loss[chunk],
                hidden[chunk],
                weight,
                grad_hidden[chunk],
                grad_weight,
            )
        return grad_hidden, grad_weight.to(weight.dtype), None


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_LOGITS // len(weight))
    return (slice(start, start + rows) for start in range(0, len(hidden), rows))


def _accumulate(
    probabilities: Tensor,
    targets: Tensor,
    grad_loss: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    grad_hidden: Tensor,
    grad_weight: Tensor,
) -> None:
    """Write a chunk's gradient of `hidden` and add that of `weight`; None: an upstream gradient of 1.

    Overwrites `probabilities` [rows, V] with the gradient of the logits.
    """
    minus = -torch.ones_like(probabilities[:, 0]) if grad_loss is None else -grad_loss
    grad_logits = probabilities if grad_loss is None else probabilities.mul_(grad_loss[:, None])
    grad_logits.scatter_add_(-1, targets[:, None], minus[:, None])
    grad_logits = grad_logits.to(hidden.dtype)
    torch.mm(grad_logits, weight, out=grad_hidden)
    if grad_weight.dtype == grad_logits.dtype:
        grad_weight.addmm_(grad_logits.T, hidden)
    else:
        grad_weight += grad_logits.T @ hidden  # the sum over chunks stays in float32


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of `hidden @ weight.T` without ever holding all logits.

    Args:
        hidden: [M, E].
        weight: [V, E].
        targets: [M] int64 in [0, V).
    Returns:
        (loss [M] in nats, entropy [M] in nats, best [M] most probable symbol); the last two carry
        no gradient.
    """
    return _LinearCrossEntropy.apply(hidden, weight.to(hidden.dtype), targets)


def gaussian_kl(weights: Iterable[tuple[Tensor, Tensor]], prior_std: Tensor) -> Tensor:
    """Mean over all weights of KL(N(mu, sigma^2) || N(0, prior_std^2)), in nats.

    Args:
        weights: (mu, raw sigma) of every SBL; sigma = softplus(raw). Some may be empty, as shards are.
        prior_std: scalar tensor.
    """
    total, count = prior_std.new_zeros(()), 0
    for mu, raw_sigma in weights:
        if not mu.numel():
            continue
        sigma = F.softplus(raw_sigma.to(torch.promote_types(raw_sigma.dtype, torch.float32)))
        mean_square = (sigma.square() + mu.to(sigma.dtype).square()).mean()
        kl = prior_std.log() - sigma.log().mean() + mean_square / (2 * prior_std.square()) - 0.5
        total, count = total + kl * mu.numel(), count + mu.numel()
    return total / max(count, 1)


def predictive_integrity(
    main_loss: Tensor, tau: Tensor, surprise: Tensor, alpha: float | Tensor, gamma: float | Tensor
) -> Tensor:
    """PI = exp(-alpha * (L_main / tau + gamma * mean surprise)), in (0, 1] wherever its arguments are finite.

    Args:
        main_loss: L_main, nats.
        tau: entropy of the predictions, nats; kept away from 0, where a model that is certain and
            right would divide 0 by 0.
        surprise: mean S over the neurons.
        alpha, gamma: how steep, and how much surprise counts; at least 0.
    """
    distress = main_loss / tau.clamp_min(1e-3) + gamma * surprise
    limits = torch.finfo(distress.dtype)
    # a loss below 0 (a density's) is no more than perfect, and no loss takes PI to 0, however it is rounded
    return torch.exp(-alpha * distress.clamp(0, limits.max)).clamp_min(limits.tiny)


def bits_per_byte(nats: Tensor, num_bytes: Tensor) -> Tensor:
    """Summed negative log-likelihood (nats) over summed UTF-8 bytes, in bits per byte."""
    return nats / (math.log(2) * num_bytes.clamp_min(1))
