"""Heads: hidden states and targets to one loss per supervised token.

Notable:
- The character head is tied to the embedder's character table (Press & Wolf 2016, arXiv 1608.05859).
- Patches are predicted by regression on their normalised content (He et al. 2021, arXiv 2111.06377).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onn_lightning.modality import HeadOutput
from onn_lightning.nn.embedding import TextEmbedder
from onn_lightning.nn.loss import linear_cross_entropy


class CharacterHead(nn.Module):
    """Next-symbol prediction over the whole inventory.

    Args:
        vocab_size: V.
        hidden_size: width of the trunk.
        num_bytes: [V] UTF-8 bytes that each symbol stands for.
        embedding_size: width of the tied table; None: that of the trunk, without a projection.
    """

    num_bytes: Tensor

    def __init__(
        self, vocab_size: int, hidden_size: int, num_bytes: Tensor, embedding_size: int | None = None
    ) -> None:
        super().__init__()
        width = embedding_size or hidden_size
        if num_bytes.shape != (vocab_size,):
            raise ValueError(
                f"num_bytes has shape {tuple(num_bytes.shape)}, the vocabulary {vocab_size} symbols"
            )
        self.weight: Tensor = nn.Parameter(torch.zeros(vocab_size, width))
        self.projection = nn.Linear(hidden_size, width, bias=False)
        nn.init.normal_(self.projection.weight, std=hidden_size**-0.5)
        self.logit_scale = nn.Parameter(torch.full((1,), width**-0.5))
        self.register_buffer("num_bytes", num_bytes, persistent=False)

    def tie_weights(self, embedder: TextEmbedder) -> None:
        """Share the character table of the modality's embedder."""
        self.weight = embedder.character.weight

    def _project(self, hidden: Tensor) -> Tensor:
        return self.projection(hidden) * self.logit_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] -> [..., V]; for generation, a few rows at a time."""
        return self._project(hidden) @ self.weight.T

    def forward(self, hidden: Tensor, targets: Tensor) -> HeadOutput:
        """hidden [m, hidden_size], targets [m] int64 -> loss, entropy, hits and bytes, [m] each."""
        loss, entropy, best = linear_cross_entropy(self._project(hidden), self.weight, targets)
        return HeadOutput(loss, entropy=entropy, correct=best == targets, num_bytes=self.num_bytes[targets])


class PatchRegressionHead(nn.Module):
    """Mean squared error of the next patch.

    Args:
        hidden_size: width of the trunk.
        patch_dim: numbers in one target patch.
    """

    def __init__(self, hidden_size: int, patch_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, patch_dim)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """hidden [m, hidden_size], targets [m, patch_dim] -> loss [m]."""
        return (self.projection(hidden) - targets).square().mean(dim=-1)
