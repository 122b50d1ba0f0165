"""Whether a reshaped network still computes what the old one did: both read the same short document.

Notable:
- Outputs are compared in float32 or better, whatever the checkpoint's type.
- Where tables were extended, the document must be one that both read alike, and only the logits of symbols
  that both know are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from onn_lightning.batch import Batch
from onn_lightning.nn import MoIETrunk, TrunkOutput


class Runnable(Protocol):
    """What is needed of a module: `OmniModule` has it."""

    heads: nn.ModuleDict

    def __call__(self, batch: Batch) -> TrunkOutput: ...


@dataclass(frozen=True)
class Difference:
    """How far the outputs of two networks are apart.

    Args:
        largest: largest absolute difference of any output.
        scale: largest absolute output.
        tokens: how many were compared.
    """

    largest: float
    scale: float
    tokens: int

    def is_rounding(self, dtype: torch.dtype) -> bool:
        """Whether it is no more than what arithmetic in a type leaves over."""
        allowed = max(1e-4, 8 * torch.finfo(dtype).eps) * max(1.0, self.scale)
        return math.isfinite(self.scale) and self.largest <= allowed


def compare(
    old: Runnable, new: Runnable, old_batch: Batch, new_batch: Batch, symbols: Mapping[str, Tensor]
) -> Difference:
    """Run both networks over the same document.

    Args:
        old, new: the networks.
        old_batch, new_batch: the document as each reads it, with as many tokens.
        symbols: by modality the old number of each of the new head's symbols, -1: a new one; absent: as they
            were.
    """
    with torch.inference_mode():
        before, after = old(old_batch).hidden, new(new_batch).hidden
        pairs = [(before, after)]
        for name, head in old.heads.items():
            logits, new_logits = _logits(head, before), _logits(new.heads[name], after)
            if logits is None or new_logits is None:
                continue
            if name in symbols:
                known = symbols[name] >= 0
                new_logits = new_logits[..., known]
                logits = logits[..., symbols[name][known]]
            pairs.append((logits, new_logits))
    return _difference(pairs)


def compare_trunks(old: MoIETrunk, new: MoIETrunk, tokens: int = 64) -> Difference:
    """Run both trunks over the same random embeddings: for networks whose modalities show no tokens.

    Args:
        old, new: the trunks, on the CPU.
        tokens: how many.
    """
    x = torch.randn(1, tokens, old.config.hidden_size, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(tokens)[None]
    with torch.inference_mode():
        return _difference([(old(x, positions).hidden, new(x, positions).hidden)])


def _difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    apart = torch.stack([(one - other).abs().max() for one, other in pairs]).max()  # NaN if any of them is
    scale = torch.stack([one.abs().max() for one, _ in pairs]).max()
    return Difference(float(apart), float(scale), pairs[0][0].shape[1])


def _logits(head: nn.Module, hidden: Tensor) -> Tensor | None:
    logits = getattr(head, "logits", None)
    return logits(hidden) if callable(logits) else None
