"""`Session`: one document's past in a KV cache; read segments in, get the hidden state that follows.

Notable:
- One row, no padding, no targets: `one_row_batch` is what the packer would make of the same segments,
  less what only training needs.
- Blocks that `CompileBlocks` compiled for training run uncompiled here: shapes change with every call.
- Nothing leaks to whoever consumes a stream between two steps: inference mode and evaluation mode hold
  within a call of `read` and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from onn_lightning.batch import Batch, ModalityTokens, Segment
from onn_lightning.nn import KVCache

if TYPE_CHECKING:
    from onn_lightning.module import OmniModule


def one_row_batch(segments: Sequence[Segment], modality_names: Sequence[str], start: int = 0) -> Batch:
    """The segments of one document as a batch of one row, without targets.

    Only the modalities that occur are in it: there is no other rank to keep in step with.

    Args:
        segments: in reading order, none empty, at least one.
        modality_names: all modalities of the run.
        start: 1-D position of the first token.
    Returns:
        Batch with B = 1 and T = the number of tokens.
    """
    numbers = {name: number for number, name in enumerate(sorted(modality_names))}
    modality_ids = torch.cat([torch.full((len(segment),), numbers[segment.modality]) for segment in segments])
    modalities = {}
    for name in dict.fromkeys(segment.modality for segment in segments):
        own = [segment for segment in segments if segment.modality == name]
        inner = [segment.positions_2d for segment in own if segment.positions_2d is not None]
        modalities[name] = ModalityTokens(
            features=torch.cat([segment.features for segment in own]),
            indices=(modality_ids == numbers[name]).nonzero().squeeze(1),
            positions_2d=torch.cat(inner) if inner else None,
        )
    return Batch(
        modality_ids=modality_ids[None],
        positions=torch.arange(start, start + len(modality_ids))[None],
        document_ids=torch.zeros(1, len(modality_ids), dtype=torch.int64),
        modalities=modalities,
    )


class Session:
    """A document being read, and continued, by a module.

    Args:
        module: on any device; floating features are converted to the type of its weights.
    """

    def __init__(self, module: OmniModule) -> None:
        self._module = module
        self._cache = KVCache(module.trunk.config.num_layers)

    def __len__(self) -> int:
        """Tokens read so far."""
        return len(self._cache)

    @torch.inference_mode()
    def read(self, segments: Sequence[Segment]) -> Tensor:
        """Append tokens to the document.

        Args:
            segments: in reading order, none empty, at least one.
        Returns:
            [D] hidden state of the last token, from which heads predict the next.
        """
        weight = next(self._module.trunk.parameters())
        converted = [_with_floats_like(segment, weight) for segment in segments]
        batch = one_row_batch(converted, list(self._module.modalities), start=len(self)).to(weight.device)
        with _evaluating(self._module), torch.compiler.set_stance("force_eager"):
            return self._module(batch, self._cache).hidden[0, -1]


def _with_floats_like(segment: Segment, weight: Tensor) -> Segment:
    """The segment with floating features of the weights' type; ids stay as they are."""
    if not segment.features.is_floating_point():
        return segment
    return dataclasses.replace(segment, features=segment.features.to(weight.dtype))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule then has the mode back that it had."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
