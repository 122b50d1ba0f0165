"""Yes-or-no decisions of M tokens by N neurons, eight to a byte.

Notable:
- The eight bits of a byte belong to eight tokens that lie ceil(M / 8) apart: packing is one pass over eight
  contiguous planes, and no neuron count has to be a multiple of eight.
- No number of tokens is special, 0 included.
- Decisions are bytes of 0 or 1, not bool: on a CPU bool tensors are several times as slow to compute with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_bits(decisions: Tensor) -> Tensor:
    """[M, N] uint8, each 0 or 1 -> [ceil(M / 8), N] uint8."""
    missing = -len(decisions) % 8
    padded = F.pad(decisions, (0, 0, 0, missing)) if missing else decisions
    bits = padded.unflatten(0, (8, len(padded) // 8))
    return (bits * _places(decisions.device)).sum(dim=0, dtype=torch.uint8)


def unpack_bits(packed: Tensor, tokens: int) -> Tensor:
    """[ceil(M / 8), N] uint8 -> [M, N] uint8, each 0 or 1; M = `tokens`."""
    bits = packed & _places(packed.device)  # [8, ceil(M / 8), N]
    return bits.clamp_(max=1).flatten(0, 1)[:tokens]


def _places(device: torch.device) -> Tensor:
    """[8, 1, 1]: the value of each bit."""
    return (1 << torch.arange(8, dtype=torch.uint8, device=device))[:, None, None]
