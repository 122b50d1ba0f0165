"""Floating-point operations of a training step, counted from the layers' shapes.

Notable:
- A product of [m, k] by [k, n] counts 2 m k n; backward counts twice the forward.
- An SBL has two products (scores and values); attention counts the causal half of its row only, as is
  usual for MFU, although packed documents shorter than the row need even less.
- A head's table counts for its supervised tokens, an embedder's look-ups count nothing.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from onn_lightning.batch import Batch
from onn_lightning.nn import MoIETrunk, TrunkConfig


def trunk_forward_flops(config: TrunkConfig, length: int) -> float:
    """FLOPs of one token through the trunk's forward pass.

    Args:
        config: shape of the trunk.
        length: T, tokens in a row.
    """
    head_dim = config.head_dim or config.hidden_size // config.num_heads
    heads = config.num_heads + 2 * (config.num_kv_heads or config.num_heads)
    attention_weights = config.num_layers * config.hidden_size * (heads + config.num_heads) * head_dim
    feed_forward_weights = 2 * config.hidden_size * sum(config.feed_forward_sizes)
    attention = 2 * config.num_heads * head_dim * length / 2  # scores and mixing, products of the causal half
    return 2 * (2 * (attention_weights + feed_forward_weights) + config.num_layers * attention)


def training_flops(trunk: MoIETrunk, embedders: nn.ModuleDict, heads: nn.ModuleDict, batch: Batch) -> float:
    """FLOPs of forward and backward over one batch, without reading the device."""
    total = batch.num_tokens * trunk_forward_flops(trunk.config, batch.positions.shape[1])
    for name, tokens in batch.modalities.items():
        if name in embedders:
            total += 2 * len(tokens.indices) * embedder_weights(embedders[name])
        if name in heads and tokens.source_indices is not None:
            total += 2 * len(tokens.source_indices) * head_weights(heads[name])
    return 3 * total


def embedder_weights(embedder: nn.Module) -> int:
    """Weights of an embedder with which a token is multiplied; look-ups are none."""
    return sum(layer.weight.numel() for layer in embedder.modules() if isinstance(layer, nn.Linear))


def head_weights(head: nn.Module) -> int:
    """Weights of a head with which a supervised token is multiplied, its table among them."""
    return sum(weight.numel() for weight in head.parameters() if weight.ndim == 2)


def measured_gemm_rate(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """FLOPs a second of plain square products: the peak to compare with where no table knows the device."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
