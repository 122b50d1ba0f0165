"""Gradient checkpointing whose recomputation cannot fire other neurons than the pass it stands for.

Notable:
- A gate is a comparison, and a recomputed score may round to the other side of it (another kernel, split
  sums, bfloat16). The gradient would then silently be that of other neurons. So the decisions are taken
  once, in the first pass; only deterministic heavy work is done again.
- "block" keeps a block's input and, packed eight to a byte, which neurons fired; everything else is
  recomputed in the block's backward.
- "selective" keeps the products' results, the scores among them, and attention's: decisions then follow from
  what was kept. Norms, gated outputs, rotations and the SBLs' copies of their weights are recomputed.
- The bits of a block live as long as its graph: its backward frees them.
- There is no dropout in the network, so no state of a random generator is saved and restored.
- Checkpoints stand around the calls of blocks: names of parameters, and what is in a block, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from onn_lightning.nn.attention import KVCache
from onn_lightning.nn.sbl import SBLObserver

Checkpointing = Literal["none", "block", "selective"]
"""What is kept for backward: everything, a block's input and decisions, or what is dear to compute."""

_aten = torch.ops.aten
_KEPT_RESULTS = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]


class BlockPass(NamedTuple):
    """What a block makes of its input [B, T, D], and what its SBLs tell, in the order of their calls.

    Args:
        hidden: [B, T, D].
        gate_handles: of each SBL.
        activations: [N] of each SBL; none from a recomputation.
    """

    hidden: Tensor
    gate_handles: list[Tensor]
    activations: list[Tensor]


def run_block(
    block: Callable[..., Tensor],
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor | None,
    surprise: Sequence[Tensor],
    mode: Checkpointing = "none",
    cache: KVCache | None = None,
    layer: int = 0,
) -> BlockPass:
    """Run a block and keep for its backward what the mode says.

    Args:
        block: what runs, called as `Block.forward` is.
        x, rotary, mask, cache, layer: its arguments; a cache goes with "none" alone.
        surprise: parts of the surprise leaf, one for each of its SBLs.
        mode: what is kept.
    """
    fired: list[Tensor] | None = [] if mode == "block" else None

    def run(x: Tensor) -> BlockPass:
        observer = SBLObserver(surprise, fired)
        hidden = block(x, rotary, mask, observer, cache, layer)
        return BlockPass(hidden, observer.gate_handles, observer.activations)

    if mode == "none":
        return run(x)
    contexts = _keeping_results if mode == "selective" else noop_context_fn
    made: BlockPass = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return made


def _keeping_results() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of the first pass and of the recomputation."""
    return create_selective_checkpoint_contexts(_KEPT_RESULTS)
