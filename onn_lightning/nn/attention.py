"""DynSIHA: self-attention whose projections are SBLs, with rotary positions, packed rows and a KV cache.

Notable:
- q, k and v are the neurons of one SBL (one GEMM), the output projection is another.
- Any head size up to one head of the full width; keys and values may be shared by groups of query
  heads (GQA, Ainslie et al. 2023, arXiv 2305.13245).
- QK-norm (Henry et al. 2020, arXiv 2010.04245) in the normalised form: the products of two factors
  that an SBL puts out have heavy tails, and the logits with them.
- Packed documents never attend to each other: the mask comes from `document_ids`. It is handed in as numbers
  of the queries' type, which all layers share; of a bool mask torch would make such numbers in every layer,
  and keep them all for backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onn_lightning.nn.norm import rms_normalize
from onn_lightning.nn.rope import apply_rotary
from onn_lightning.nn.sbl import SBLForm, SBLObserver


def packed_causal_mask(document_ids: Tensor) -> Tensor:
    """[B, T] document ids -> [B, 1, T, T] bool: attend to yourself and the past of your own document."""
    same_document = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same_document.tril()


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """bool mask -> what it adds to the scores: 0 where attention is allowed, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


class KVCache:
    """Keys and values of one document's past, for all layers; grows by doubling.

    Args:
        num_layers: layers of the trunk.
    """

    def __init__(self, num_layers: int) -> None:
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._used = [0] * num_layers

    def __len__(self) -> int:
        """Tokens stored so far."""
        return self._used[-1]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, H, t, d] new keys and values; returns all of them, [B, H, T, d]."""
        start, end = self._used[layer], self._used[layer] + keys.shape[2]
        all_keys = self._keys[layer] = self._write(self._keys[layer], keys, start, end)
        all_values = self._values[layer] = self._write(self._values[layer], values, start, end)
        self._used[layer] = end
        return all_keys[:, :, :end], all_values[:, :, :end]

    @staticmethod
    def _write(store: Tensor | None, new: Tensor, start: int, end: int) -> Tensor:
        if store is None or end > store.shape[2]:
            rows, heads, _, width = new.shape
            larger = new.new_empty(rows, heads, max(2 * start, end, 64), width)
            if store is not None:
                larger[:, :, :start] = store[:, :, :start]
            store = larger
        store[:, :, start:end] = new
        return store


class DynSIHA(nn.Module):
    """Dynamic Sparse Infinite-Head Attention.

    Args:
        hidden_size: D.
        num_heads: query heads H.
        num_kv_heads: key/value heads, a divisor of H; None: H.
        head_dim: channels of one head, even; None: D / H.
        form: form and initial values of the SBLs.
        output_scale: factor on the initial weights of the SBL that writes to the residual stream.
    Raises:
        ValueError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        form: SBLForm | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        form = form or SBLForm()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        if head_dim is None and hidden_size % num_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}: "
                "change one, or set head_dim"
            )
        self.head_dim = head_dim or hidden_size // num_heads
        if self.head_dim % 2 or self.head_dim > hidden_size:
            raise ValueError(
                f"head_dim is {self.head_dim}: it must be even (rotary pairs) and at most "
                f"hidden_size {hidden_size}"
            )
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {num_heads}")
        self.normalized = form.normalized
        self.qkv = form.build(hidden_size, (num_heads + 2 * self.num_kv_heads) * self.head_dim)
        self.output = form.build(num_heads * self.head_dim, hidden_size, output_scale)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        observer: SBLObserver | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Attend.

        Args:
            x: [B, T, D].
            rotary: (cos, sin) of the tokens' positions, [B, 1, T, head_dim / 2].
            mask: [B, 1, T, keys], bool (True: attend) or added to the scores; None: plain causal.
            observer: takes the SBLs' observations.
            cache: past keys and values, extended in place.
            layer: this layer's place in the cache.
        Returns:
            [B, T, D].
        """
        observer = observer or SBLObserver()
        heads = (
            observer(self.qkv, x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        )  # [B, H + 2 KV, T, d]
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        mixed = self._attend(q, k, v, rotary, mask, cache, layer)  # [B, H, T, d]
        mixed = mixed.transpose(1, 2).flatten(-2)  # [B, T, H * d]
        return observer(self.output, rms_normalize(mixed) if self.normalized else mixed)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        """[B, heads, T, d] queries and [B, KV heads, T, d] keys and values -> [B, heads, T, d]."""
        if self.normalized:
            q, k = rms_normalize(q), rms_normalize(k)
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
        )


def cached_causal_mask(past: int, new: int, device: torch.device) -> Tensor:
    """[1, 1, new, past + new] bool mask of tokens that continue a cached document."""
    return torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)[None, None]
