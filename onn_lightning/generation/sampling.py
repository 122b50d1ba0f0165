"""From logits to the next id: temperature, top-k, top-p; pure functions.

Notable:
- In the order and with the edges of Hugging Face transformers: temperature, then top-k (ties with the
  k-th are kept), then top-p over what is left.
- Everything happens in float32 on the CPU, with a generator of its own: one seed and one row of logits
  give one id on every device, and the global random state is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen.

    Args:
        temperature: divides the logits; 0: greedy, the most probable id (then top_k and top_p change
            nothing).
        top_k: keep this many of the most probable ids; None: all.
        top_p: keep the fewest most probable ids whose probabilities add up to at least this (nucleus
            sampling, Holtzman et al. 2019, arXiv 1904.09751); None: all.
    Raises:
        ValueError: for a number out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: it must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 1, or None to keep every id")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must be in (0, 1], or None to keep every id")


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits of the distribution to draw from, for a temperature above 0.

    Args:
        logits: [V] float32; -inf where an id is forbidden.
        sampling: its temperature is not 0.
    Returns:
        [V] float32, shifted to a maximum of 0; -inf where an id is forbidden or not kept.
    """
    # Shifted first: a tiny temperature then gives 0 and -inf, where inf - inf would give NaN.
    logits = (logits - logits.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        kth = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ascending, order = logits.sort()
        tail = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        tail[-1] = False  # the most probable id stays, whatever rounding says
        logits = logits.masked_fill(torch.zeros_like(tail).scatter(0, order, tail), -torch.inf)
    return logits


def choose(logits: Tensor, allowed: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next id.

    Args:
        logits: [V] on any device, of any floating type.
        allowed: [V] bool on the CPU, False: never chosen.
        sampling: how to choose.
        generator: source of randomness, on the CPU; untouched when greedy.
    Raises:
        RuntimeError: if a logit is NaN or infinite.
    """
    logits = logits.float().cpu()
    if not logits.isfinite().all():
        raise RuntimeError(
            "the model's logits are not finite: its weights are damaged or its training diverged; take an "
            "earlier checkpoint, or float32 where a narrower type overflows"
        )
    logits = logits.masked_fill(~allowed, -torch.inf)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = warp(logits, sampling).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
