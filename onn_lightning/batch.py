"""The contract between data and model: `Segment` (one modality) and `Batch` (packed rows).

Notable:
- A target belongs to the token it describes; the hidden state that must predict it is the one
  BEFORE it in the same document. That pairing crosses modalities (the last patch of an image
  predicts the first character of its caption), so the packer resolves it once, on the CPU, into
  `source_indices`; the training step only gathers.
- Every modality of a run is present in every batch, with zero tokens if need be: all embedders
  and heads then take part in every step on every rank, which is what DDP and FSDP expect.
- A `Batch` moves to a device and pins its memory as one object. It and its parts are not frozen: where all
  weights are of another type (`precision: bf16-true`), Lightning gives the floats among features and
  targets that type, field by field of a copy, and refuses frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PADDING_DOCUMENT = -1
"""`document_ids` of positions that hold no token."""


@dataclass(frozen=True)
class Segment:
    """One run of tokens of one modality, as `Modality.encode` returns it.

    Args:
        modality: name of the modality the tokens belong to.
        features: [n, ...] what the embedder reads, one row a token.
        positions_2d: [n, 2] (x, y) of each token inside its own medium, or None.
        targets: [n, ...] what a head must predict for each token, or None: no loss of its own.
        loss_mask: [n] bool, True where predicting the token carries loss; None: wherever there
            are targets.
    Raises:
        ValueError: if the parts differ in length.
    """

    modality: str
    features: Tensor
    positions_2d: Tensor | None = None
    targets: Tensor | None = None
    loss_mask: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("positions_2d", "targets", "loss_mask"):
            part = getattr(self, name)
            if part is not None and part.shape[0] != len(self):
                raise ValueError(
                    f"Segment of modality '{self.modality}': {name} has {len(part)} rows, features "
                    f"have {len(self)}; every part needs one row a token"
                )

    def __len__(self) -> int:
        return self.features.shape[0]  # three times as fast as len() of a tensor

    def __getitem__(self, rows: slice) -> Segment:
        """The same segment restricted to a run of its tokens."""
        return Segment(
            self.modality,
            self.features[rows],
            None if self.positions_2d is None else self.positions_2d[rows],
            None if self.targets is None else self.targets[rows],
            None if self.loss_mask is None else self.loss_mask[rows],
        )

    def without_loss(self) -> Segment:
        """The same tokens as mere context: read by the model, never predicted."""
        return Segment(self.modality, self.features, self.positions_2d)


@dataclass
class ModalityTokens:
    """All tokens of one modality in a batch, flat.

    Args:
        features: [n, ...] one row a token.
        indices: [n] int64, place of each token in the flattened [B * T] rows.
        positions_2d: [n, 2] or None.
        targets: [m, ...] for the supervised tokens only, or None.
        source_indices: [m] int64, flat place of the hidden state that predicts each target.
    """

    features: Tensor
    indices: Tensor
    positions_2d: Tensor | None = None
    targets: Tensor | None = None
    source_indices: Tensor | None = None


@dataclass
class Batch:
    """Documents packed into B rows of T tokens.

    Args:
        modality_ids: [B, T] int64; index into the run's modality names in sorted order, -1: padding.
        positions: [B, T] int64; 1-D position, restarts at 0 in each document.
        document_ids: [B, T] int64; attention never crosses documents; -1: padding.
        modalities: the tokens of each modality by name, present even where empty.
        source: name of the data source when all rows come from one (held-out sets), else "".
    """

    modality_ids: Tensor
    positions: Tensor
    document_ids: Tensor
    modalities: dict[str, ModalityTokens] = field(default_factory=dict)
    source: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding (counted without reading the device)."""
        return sum(len(tokens.indices) for tokens in self.modalities.values())

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Move every tensor, as `torch.Tensor.to` does (device only: dtypes differ by part)."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Batch:
        """Pin every tensor; `DataLoader(pin_memory=True)` calls this."""
        return self.map(torch.Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor replaced, always in the same order."""

        def apply(value: Tensor | None) -> Tensor | None:
            return None if value is None else function(value)

        return Batch(
            modality_ids=function(self.modality_ids),
            positions=function(self.positions),
            document_ids=function(self.document_ids),
            modalities={
                name: ModalityTokens(
                    features=function(tokens.features),
                    indices=function(tokens.indices),
                    positions_2d=apply(tokens.positions_2d),
                    targets=apply(tokens.targets),
                    source_indices=apply(tokens.source_indices),
                )
                for name, tokens in self.modalities.items()
            },
            source=self.source,
        )
