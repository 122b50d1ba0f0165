"""What a training step keeps between forward and backward, counted from the layers' shapes.

Notable:
- Counted is what the layers save: `nn/sbl.py` its input, weights and pre-activations, `nn/norm.py` its
  output, `nn/attention.py` queries, keys, values and result, `nn/loss.py` factors and their gradients.
- An SBL also keeps copies of its weights (softplus of sigma; keys and means, stacked): they do not grow with
  the batch, but with the model.
- The mask of packed rows is [B, 1, T, T] numbers of the queries' type, shared by all layers.
- Under gradient checkpointing a block keeps its input and which neurons fired ("block") or the results of its
  products ("selective"), see `nn/recompute.py`; all the rest is there for one block at a time.
- Attention is taken to run in a kernel that keeps no scores [B, H, T, T], as on the CPU.
- Under tensor parallelism a rank keeps its share of the neurons' pre-activations and of the heads; what
  stands between two layers is whole on every rank, see `distributed/tensor_parallel.py`.
- All tokens are taken to be text, and supervised: that is the most that a row can need.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from onn_lightning.nn import CharacterHead, TextEmbedder, TrunkConfig
from onn_lightning.nn.loss import CHUNK_LOGITS
from onn_lightning.nn.recompute import Checkpointing

_STATISTICS = 4
"""Bytes of what is summed up in float32 whatever the precision: scales of norms under it, log-sum-exp."""


@dataclass(frozen=True)
class Precision:
    """Bytes of a number.

    Args:
        parameter: of weights, gradients and optimizer state.
        compute: of the products and of what they keep.
    """

    parameter: int
    compute: int


PRECISIONS = {
    "32-true": Precision(4, 4),
    "bf16-mixed": Precision(4, 2),
    "16-mixed": Precision(4, 2),
}


@dataclass(frozen=True)
class Step:
    """Bytes that a step keeps, and that it needs for a moment.

    Args:
        trunk: kept by all blocks.
        mask: of it, the mask of packed rows.
        weight_copies: of it, what SBLs keep of their weights.
        ends: kept by positions, embedders and heads.
        kl: kept by the KL term until backward begins.
        backward: needed for a moment in the backward pass of a block, what it recomputes included.
        head: needed for a moment by the loss over the characters.
    """

    trunk: int
    mask: int
    weight_copies: int
    ends: int
    kl: int
    backward: int
    head: int

    def peak(self, gathered: int = 0) -> int:
        """The most at a time: when backward begins, or in that of the last block.

        Args:
            gathered: bytes of weights and gradients that are there only in the latter.
        """
        return self.trunk + max(self.ends + max(self.kl, self.head), self.backward + gathered)


def step_memory(
    config: TrunkConfig,
    embedder: nn.Module | None,
    head: nn.Module | None,
    rows: int,
    length: int,
    precision: Precision,
    checkpointing: Checkpointing = "none",
    tensor_parallel: int = 1,
    kl_shards: int = 1,
) -> Step:
    """What forward and backward over one micro-batch need beyond weights, gradients and optimizer state.

    Args:
        config: shape of the trunk.
        embedder: of text, or None.
        head: of text, or None.
        rows: B.
        length: T.
        precision: bytes of the numbers.
        checkpointing: what blocks keep.
        tensor_parallel: R, ranks that share the neurons of every layer.
        kl_shards: ranks that share the KL term.
    """
    stream = _stream(embedder, precision)
    tokens = rows * length
    blocks = [
        _Block(config, size, tokens, precision, stream, checkpointing, tensor_parallel)
        for size in config.feed_forward_sizes
    ]
    mask = tokens * length * precision.compute
    ends, head_moment = _ends(config, embedder, head, tokens, precision)
    return Step(
        trunk=mask + sum(block.kept for block in blocks),
        mask=mask,
        weight_copies=sum(block.weight_copies for block in blocks) if checkpointing == "none" else 0,
        ends=ends,
        kl=sum(block.weights for block in blocks) * precision.parameter // kl_shards,
        backward=max(block.backward for block in blocks),
        head=head_moment,
    )


def _stream(embedder: nn.Module | None, precision: Precision) -> int:
    """Bytes of a number in the residual stream: projected tables enter it in the products' type."""
    projected = isinstance(embedder, TextEmbedder) and isinstance(embedder.projection, nn.Linear)
    return precision.compute if projected else precision.parameter


class _Block:
    """Bytes of one block.

    Args:
        config: shape of the trunk.
        inner: F, neurons of its first MoIE layer.
        tokens: of all rows.
        precision: bytes of the numbers.
        stream: bytes of a number in the residual stream.
        checkpointing: what is kept.
        ranks: R, of tensor parallelism.
    """

    def __init__(
        self,
        config: TrunkConfig,
        inner: int,
        tokens: int,
        precision: Precision,
        stream: int,
        checkpointing: Checkpointing,
        ranks: int,
    ) -> None:
        width, heads = config.hidden_size, config.num_heads
        key_heads = config.num_kv_heads or heads
        head_dim = config.head_dim or width // heads
        queries, keys = heads * head_dim, key_heads * head_dim
        compute = precision.compute
        qkv = queries + 2 * keys
        self.weights = width * qkv + queries * width + 2 * width * inner
        self.weight_copies = self.weights * (precision.parameter + 2 * compute) // ranks
        own_qkv, own_inner, own_width = qkv // ranks, inner // ranks, width // ranks
        numbers = 3 * own_qkv  # pre-activations, and the projections themselves
        numbers += (2 * (queries + keys) + queries) // ranks  # q and k normed, turned; attention's result
        numbers += width + 2 * own_width  # the norm's output, pre-activations of the output's SBL
        numbers += width + 2 * own_inner + 2 * own_width  # MoIE: norm, pre-activations of both SBLs
        if config.sbl.normalized:
            numbers += queries + inner  # norms before the second SBLs
        else:
            numbers += inner - (queries + keys) // ranks
        statistics = heads // ranks * _STATISTICS + ((heads + key_heads) // ranks + 4) * compute
        if compute != precision.parameter:
            statistics += 4 * (head_dim // 2) * compute  # cosines and sines, brought to the products' type
        if stream != compute:
            statistics += 2 * width * stream  # the norms' outputs, beside their copies in the products' type
        everything = tokens * (numbers * compute + statistics) + self.weight_copies
        up = (tokens * (4 * own_inner + 2 * width) + 4 * width * own_inner) * compute
        attention = (tokens * (4 * own_qkv + 2 * width) + 4 * width * own_qkv) * compute
        self.backward = max(up, attention)

        neurons = own_qkv + own_inner + 2 * own_width
        if checkpointing == "none":
            self.kept = everything
        elif checkpointing == "block":
            self.kept = tokens * width * stream + -(-tokens // 8) * neurons
            self.backward += everything
        else:
            results = tokens * ((2 * neurons + queries // ranks) * compute + heads // ranks * _STATISTICS)
            self.kept = tokens * width * stream + results
            self.backward += everything - results


def _ends(
    config: TrunkConfig, embedder: nn.Module | None, head: nn.Module | None, tokens: int, precision: Precision
) -> tuple[int, int]:
    """Bytes that positions, embedder and head keep, and that the head needs for a moment."""
    width, compute = config.hidden_size, precision.compute
    kept = tokens * width * precision.parameter  # additive positions, for their gain
    kept += tokens * width * _stream(embedder, precision)  # the last norm
    if isinstance(embedder, TextEmbedder) and isinstance(embedder.projection, nn.Linear):
        kept += tokens * embedder.projection.in_features * compute
    if not isinstance(head, CharacterHead):
        return kept, 0
    symbols, narrow = head.weight.shape
    kept += tokens * width * compute  # rows gathered for the head
    kept += tokens * (3 * narrow * compute + 2 * _STATISTICS) + symbols * narrow * 4
    if compute != precision.parameter:
        kept += symbols * narrow * compute
    return kept, 2 * min(CHUNK_LOGITS, tokens * symbols) * 4
