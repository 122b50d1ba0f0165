"""From encoded documents to `Batch`: cutting into pieces, filling rows, collating.

Notable:
- A document longer than a row becomes several pieces that overlap by ONE token: the last token of a
  piece is repeated, as mere context, at the head of the next. So every target of the document except
  its first token's finds, exactly once, a predecessor that predicts it.
- A piece is a document of its own for positions and attention; its first token has no predecessor
  and is never supervised.
- One medium is never cut: a segment with `positions_2d` has an inner geometry and goes whole into
  one piece. Segments without (text, series) are cut wherever the row ends.
- Every batch of a run has the same [B, T] shape and the same modalities: missing rows are padding,
  missing modalities have zero tokens with the right trailing shapes, taken from a prototype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onn_lightning.batch import PADDING_DOCUMENT, Batch, ModalityTokens, Segment
from onn_lightning.modality import BadSampleError


@dataclass(frozen=True)
class Piece:
    """A run of segments of one document that stands in one row.

    Args:
        segments: in reading order, none empty.
    """

    segments: tuple[Segment, ...]
    length: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", sum(len(segment) for segment in self.segments))

    def __len__(self) -> int:
        return self.length


def split_document(segments: Sequence[Segment], row_length: int) -> list[Piece]:
    """Cut a document into pieces that each fit in a row.

    Args:
        segments: the document, none empty.
        row_length: tokens in a row, at least 2.
    Returns:
        One piece if the document fits; otherwise pieces that overlap by one token.
    Raises:
        BadSampleError: if a medium does not fit in one row beside the token that predicts it.
    """
    pieces: list[Piece] = []
    current: list[Segment] = []
    room = row_length

    def begin_piece() -> None:
        nonlocal current, room
        pieces.append(Piece(tuple(current)))
        current, room = [current[-1][-1:].without_loss()], row_length - 1

    for segment in segments:
        if segment.positions_2d is not None:
            if len(segment) > row_length - 1:
                raise BadSampleError(
                    f"a medium of modality '{segment.modality}' has {len(segment)} tokens, a row has room "
                    f"for {row_length - 1} beside the token before it: lower the modality's budget (fewer "
                    "tokens, smaller size, shorter duration, larger patch) or raise `row_length`"
                )
            if len(segment) > room:
                begin_piece()
            current.append(segment)
            room -= len(segment)
            continue
        start = 0
        while start < len(segment):
            if room == 0:
                begin_piece()
            part = segment[start : start + room]
            current.append(part)
            room -= len(part)
            start += len(part)
    if current:
        pieces.append(Piece(tuple(current)))
    return pieces


def best_fit(pieces: Sequence[Piece], room: int) -> int | None:
    """Index of the longest piece of at most `room` tokens (the first such), or None."""
    best, best_length = None, 0
    for index, piece in enumerate(pieces):
        if best_length < piece.length <= room:
            best, best_length = index, piece.length
    return best


def prototype_of(segment: Segment) -> Segment:
    """The segment without its tokens: trailing shapes and types only.

    Cloned, since a view would carry the sample's whole storage along into every worker.
    """

    def empty(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[:0].clone()

    return Segment(
        modality=segment.modality,
        features=segment.features[:0].clone(),
        positions_2d=empty(segment.positions_2d),
        targets=empty(segment.targets),
    )


class Collator:
    """Rows of pieces -> `Batch`.

    Args:
        prototypes: an empty segment of each modality that occurs in the run's data.
        modality_names: all modalities of the run; `modality_ids` index them in sorted order.
        row_length: T, tokens in a row.
        rows_per_batch: B, rows in a batch.
    """

    def __init__(
        self,
        prototypes: Mapping[str, Segment],
        modality_names: Sequence[str],
        row_length: int,
        rows_per_batch: int,
    ) -> None:
        self.prototypes = dict(prototypes)
        self.modality_ids = {name: number for number, name in enumerate(sorted(modality_names))}
        self.row_length = row_length
        self.rows_per_batch = rows_per_batch

    def __call__(self, rows: Sequence[Sequence[Piece]], source: str = "") -> Batch:
        """Pack rows; those that are missing to B are padding.

        Args:
            rows: at most B rows, the pieces of each at most T tokens long in all.
            source: name of the data source where all rows come from one.
        Raises:
            ValueError: if there are too many rows, or one is too long.
        """
        if len(rows) > self.rows_per_batch:
            raise ValueError(f"{len(rows)} rows do not fit in a batch of {self.rows_per_batch}")
        shape = (self.rows_per_batch, self.row_length)
        modality_ids = torch.full(shape, -1)
        positions = torch.zeros(shape, dtype=torch.int64)
        document_ids = torch.full(shape, PADDING_DOCUMENT)
        parts = {name: _Parts() for name in self.prototypes}
        for row, pieces in enumerate(rows):
            if sum(len(piece) for piece in pieces) > self.row_length:
                raise ValueError(f"the pieces of row {row} hold more than {self.row_length} tokens")
            start = 0
            for document, piece in enumerate(pieces):
                end = start + len(piece)
                positions[row, start:end] = torch.arange(len(piece))
                document_ids[row, start:end] = document
                head = start
                for segment in piece.segments:
                    stop = head + len(segment)
                    if segment.modality not in parts:
                        raise ValueError(
                            f"the data holds modality '{segment.modality}', of which no source showed a "
                            "sample during setup: let the source's `indices_with` find it"
                        )
                    modality_ids[row, head:stop] = self.modality_ids[segment.modality]
                    place = row * self.row_length + head
                    parts[segment.modality].add(segment, place, opens_piece=head == start)
                    head = stop
                start = end
        return Batch(
            modality_ids=modality_ids,
            positions=positions,
            document_ids=document_ids,
            modalities={name: parts[name].joined(prototype) for name, prototype in self.prototypes.items()},
            source=source,
        )


class _Parts:
    """The tensors of one modality while a batch is being put together."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.positions_2d: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.source_indices: list[Tensor] = []

    def add(self, segment: Segment, place: int, opens_piece: bool) -> None:
        indices = torch.arange(place, place + len(segment))
        self.features.append(segment.features)
        self.indices.append(indices)
        if segment.positions_2d is not None:
            self.positions_2d.append(segment.positions_2d)
        if segment.targets is None:
            return
        first = 1 if opens_piece else 0  # nothing stands before a piece's first token to predict it
        targets, indices = segment.targets[first:], indices[first:]
        if segment.loss_mask is not None:
            mask = segment.loss_mask[first:]
            targets, indices = targets[mask], indices[mask]
        self.targets.append(targets)
        self.source_indices.append(indices - 1)

    def joined(self, prototype: Segment) -> ModalityTokens:
        def join(empty: Tensor | None, tensors: list[Tensor]) -> Tensor | None:
            return None if empty is None else torch.cat([empty, *tensors])

        no_index = torch.zeros(0, dtype=torch.int64)
        return ModalityTokens(
            features=torch.cat([prototype.features, *self.features]),
            indices=torch.cat([no_index, *self.indices]),
            positions_2d=join(prototype.positions_2d, self.positions_2d),
            targets=join(prototype.targets, self.targets),
            source_indices=join(None if prototype.targets is None else no_index, self.source_indices),
        )
