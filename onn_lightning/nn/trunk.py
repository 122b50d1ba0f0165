"""The trunk: one tower of DynSIHA and MoIE blocks, shared by every modality.

Notable:
- [B, T, D] -> [B, T, D]; it knows nothing of modalities or losses.
- Pre-norm residual blocks; the SBLs that write to the residual stream start smaller by
  1 / sqrt(2 * num_layers), so that the stream's variance is bounded at any depth.
- Everything regulation needs leaves in one `TrunkAuxiliary`: a scalar gate handle, and per neuron
  - all SBLs in one vector, laid out by `neuron_slices` - the surprise leaf and the activation.
- The frequencies of the rotary positions and of the additive ones come from the same fields.
- The mask of packed rows is made once, in the form in which attention reads it, and shared by all blocks.
- `checkpointing` says what a training pass keeps for backward; without gradients it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import cast, get_args

import torch
from torch import Tensor, nn

from onn_lightning.nn.attention import DynSIHA, KVCache, additive_mask, cached_causal_mask, packed_causal_mask
from onn_lightning.nn.moie import MoIE
from onn_lightning.nn.norm import rms_normalize
from onn_lightning.nn.recompute import Checkpointing, run_block
from onn_lightning.nn.rope import RotaryPositions, YarnScaling
from onn_lightning.nn.sbl import SBLForm, SBLObserver, SparseBayesianLinear


@dataclass(frozen=True)
class TrunkConfig:
    """Shape of the trunk.

    Args:
        hidden_size: D, width of the residual stream (divisible by 4 where patches enter).
        num_layers: blocks, each a DynSIHA and a MoIE.
        num_heads: query heads.
        num_kv_heads: key/value heads; None: as many as query heads.
        head_dim: channels of a head; None: hidden_size / num_heads.
        intermediate_size: neurons of the first MoIE layer, one number for all blocks or one each; None: 8/3
            of hidden_size, rounded up to a multiple of 32.
        rope_theta: base of the rotary frequencies; 1e6 suits a native window of 32,768 tokens.
        yarn: extension of the context window, or None.
        sbl: form and initial values of the SBLs.
    """

    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | list[int] | None = None
    rope_theta: float = 1_000_000.0
    yarn: YarnScaling | None = None
    sbl: SBLForm = field(default_factory=SBLForm)

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrunkConfig.{name} is {getattr(self, name)}: it must be at least 1")
        sizes = self.feed_forward_sizes
        if len(sizes) != self.num_layers or min(sizes) < 1:
            raise ValueError(
                f"TrunkConfig.intermediate_size is {self.intermediate_size}: give one size of at least 1 for "
                f"all blocks, or a list of {self.num_layers}, one for each"
            )

    @property
    def feed_forward_sizes(self) -> tuple[int, ...]:
        """Neurons of the first MoIE layer of every block."""
        if isinstance(self.intermediate_size, int | None):
            default = -(-self.hidden_size * 8 // 3 // 32) * 32
            return (default if self.intermediate_size is None else self.intermediate_size,) * self.num_layers
        return tuple(self.intermediate_size)


@dataclass(frozen=True)
class TrunkAuxiliary:
    """What one forward pass tells the regulators; N = all neurons of the trunk, see `neuron_slices`.

    Args:
        gate_handle: scalar 0; w_gate * gate_handle in the loss trains the gates.
        surprise: [N] leaf whose `.grad` holds S after backward.
        activation: [N] fraction of tokens for which each neuron fired.
    """

    gate_handle: Tensor
    surprise: Tensor
    activation: Tensor


@dataclass(frozen=True)
class TrunkOutput:
    """Hidden states [B, T, D], normalised for the heads, and the auxiliary."""

    hidden: Tensor
    auxiliary: TrunkAuxiliary


SBLS_PER_BLOCK = 4
"""qkv, output, up, down."""


class Block(nn.Module):
    """x + DynSIHA(norm(x)), then x + MoIE(norm(x))."""

    def __init__(self, config: TrunkConfig, intermediate_size: int) -> None:
        super().__init__()
        output_scale = (2 * config.num_layers) ** -0.5
        self.attention = DynSIHA(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.sbl,
            output_scale,
        )
        self.moie = MoIE(config.hidden_size, intermediate_size, config.sbl, output_scale)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        observer: SBLObserver | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; arguments as those of `DynSIHA.forward`."""
        x = x + self.attention(rms_normalize(x), rotary, mask, observer, cache, layer)
        return x + self.moie(rms_normalize(x), observer)


class MoIETrunk(nn.Module):
    """The tower.

    Args:
        config: its shape.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, size) for size in config.feed_forward_sizes)
        head_dim = next(self._typed_blocks()).attention.head_dim
        self.rotary = RotaryPositions(head_dim, config.rope_theta, config.yarn)
        self._checkpointing: Checkpointing = "none"

    @property
    def checkpointing(self) -> Checkpointing:
        """What a training pass keeps for backward, see `onn_lightning.nn.recompute`; "none" by default.

        Raises:
            ValueError: when set to an unknown word.
        """
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, mode: Checkpointing) -> None:
        if mode not in get_args(Checkpointing):
            raise ValueError(f"checkpointing {mode!r} is unknown: choose one of {get_args(Checkpointing)}")
        self._checkpointing = mode

    def _typed_blocks(self) -> Iterator[Block]:
        # cast, not checked: a block may stand in a wrapper that hands its parts on (checkpointing)
        return (cast(Block, block) for block in self.blocks)

    def sbl_layers(self) -> Iterator[tuple[str, SparseBayesianLinear]]:
        """(name, layer) of every SBL, in the order in which a forward pass calls them."""
        for index, block in enumerate(self._typed_blocks()):
            yield f"{index}.attention.qkv", block.attention.qkv
            yield f"{index}.attention.output", block.attention.output
            yield f"{index}.moie.up", block.moie.up
            yield f"{index}.moie.down", block.moie.down

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Neurons of all SBLs of each block."""
        sizes = [0] * len(self.blocks)
        for name, layer in self.sbl_layers():
            sizes[int(name.partition(".")[0])] += layer.out_features
        return tuple(sizes)

    @property
    def neuron_slices(self) -> dict[str, slice]:
        """Where each SBL's neurons stand in the vectors of `TrunkAuxiliary`."""
        slices, start = {}, 0
        for name, layer in self.sbl_layers():
            slices[name] = slice(start, start + layer.out_features)
            start += layer.out_features
        return slices

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> TrunkOutput:
        """Run the tower.

        Args:
            x: [B, T, D] token embeddings.
            positions: [B, T] 1-D positions, restarting in every document.
            document_ids: [B, T]; None: every row is one document.
            cache: past keys and values of the rows' documents, extended in place.
        Raises:
            ValueError: for packed documents together with a cache.
        """
        mask = None
        if cache is not None and len(cache):
            mask = cached_causal_mask(len(cache), x.shape[1], x.device)
        if document_ids is not None:
            if cache is not None:
                raise ValueError("a KV cache continues one document a row: leave document_ids out")
            mask = additive_mask(packed_causal_mask(document_ids), _product_type(x))
        rotary = self.rotary(positions)
        sizes = [layer.out_features for _, layer in self.sbl_layers()]
        leaf = torch.zeros(sum(sizes), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        leaf.requires_grad_(torch.is_grad_enabled())
        mode = self.checkpointing if torch.is_grad_enabled() and cache is None else "none"
        parts = iter(leaf.split(sizes))
        handles: list[Tensor] = []
        activations: list[Tensor] = []
        for layer, block in enumerate(self._typed_blocks()):
            # an observer each: what a compiled block depends on is then alike for all blocks of a shape
            surprise = list(islice(parts, SBLS_PER_BLOCK))
            seen = run_block(block, x, rotary, mask, surprise, mode, cache, layer)
            x = seen.hidden
            handles += seen.gate_handles
            activations += seen.activations
        auxiliary = TrunkAuxiliary(
            gate_handle=torch.stack(handles).sum(), surprise=leaf, activation=torch.cat(activations)
        )
        return TrunkOutput(rms_normalize(x), auxiliary)


def _product_type(x: Tensor) -> torch.dtype:
    """Type of the queries that blocks make of a stream x: autocast's, or x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
