"""A batch taken apart again: the pieces of its rows, and the runs of tokens that they consist of.

Notable:
- Only the batch is read, as the model gets it, never the documents it was made from: what is wrong on
  the way shows.
- A run is one medium or one stretch of tokens without an inner geometry. A medium begins at the place
  (0, 0), so two images in a row are two runs.
- Whether a piece is all of its document is not written in a batch. It is inferred from what a modality
  puts around a document (`opening_segment`, `closing_segment`) and from media that do not begin at
  (0, 0); a modality without these tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from onn_lightning.batch import PADDING_DOCUMENT, Batch, Segment
from onn_lightning.modality import Modality, Preview


@dataclass(frozen=True)
class Run:
    """Tokens of one modality that follow each other in one piece.

    Args:
        segment: features and places of the tokens.
        supervised: [n] bool, whether each token is predicted from the one before it.
        preview: what a person sees of them; None: their modality has nothing to show.
    """

    segment: Segment
    supervised: Tensor
    preview: Preview | None = None

    @property
    def modality(self) -> str:
        """Name of the modality."""
        return self.segment.modality

    def __len__(self) -> int:
        return len(self.segment)


@dataclass(frozen=True)
class PackedPiece:
    """A document, or a part of one, as it stands in a row.

    Args:
        row: number of the row.
        number: of the piece in its row.
        start: place of its first token in the row.
        runs: in reading order.
        continues: its document has begun in an earlier piece.
        goes_on: its document goes on in another piece.
    """

    row: int
    number: int
    start: int
    runs: tuple[Run, ...]
    continues: bool
    goes_on: bool

    def __len__(self) -> int:
        return sum(map(len, self.runs))


def pieces_of(batch: Batch, modalities: Mapping[str, Modality]) -> list[PackedPiece]:
    """The pieces of a batch, row by row.

    Args:
        batch: on the CPU.
        modalities: the run's modalities by name.
    """
    length = batch.document_ids.shape[1]
    supervised = torch.zeros(batch.document_ids.numel(), dtype=torch.bool)
    for tokens in batch.modalities.values():
        if tokens.source_indices is not None:
            supervised[tokens.source_indices + 1] = True
    segments = _Segments(batch, sorted(modalities))  # as `modality_ids` number them
    pieces: list[PackedPiece] = []
    for row, documents in enumerate(batch.document_ids):
        number = 0
        for start, end in _stretches(documents):
            if documents[start] == PADDING_DOCUMENT:
                continue
            runs: list[Run] = []
            for first, last in _stretches(batch.modality_ids[row, start:end]):
                places = slice(row * length + start + first, row * length + start + last)
                segment = segments.at(places)
                runs += _by_medium(segment, supervised[places], modalities[segment.modality])
            continues, goes_on = _continues(runs[0], modalities), _goes_on(runs[-1], modalities)
            pieces.append(PackedPiece(row, number, start, tuple(runs), continues, goes_on))
            number += 1
    return pieces


class _Segments:
    """Finds the tokens of any stretch of one modality in a batch."""

    def __init__(self, batch: Batch, names: Sequence[str]) -> None:
        self._batch = batch
        self._names = names
        self._numbers = torch.zeros(batch.document_ids.numel(), dtype=torch.int64)  # among its modality's
        for tokens in batch.modalities.values():
            self._numbers[tokens.indices] = torch.arange(len(tokens.indices))

    def at(self, places: slice) -> Segment:
        """Tokens of one modality at places of the flattened rows."""
        name = self._names[int(self._batch.modality_ids.flatten()[places.start])]
        tokens, numbers = self._batch.modalities[name], self._numbers[places]
        positions = None if tokens.positions_2d is None else tokens.positions_2d[numbers]
        return Segment(name, tokens.features[numbers], positions)


def _by_medium(segment: Segment, supervised: Tensor, modality: Modality) -> Iterator[Run]:
    """The tokens, cut where a medium begins."""
    begins = [0]
    if segment.positions_2d is not None:
        at_origin = (segment.positions_2d == 0).all(dim=1)
        begins += [start for start in torch.nonzero(at_origin).flatten().tolist() if start]
    for start, end in zip(begins, [*begins[1:], len(segment)], strict=True):
        part = segment[start:end]
        yield Run(part, supervised[start:end], modality.preview(part))


def _stretches(values: Tensor) -> Iterator[tuple[int, int]]:
    """First and last + 1 of every stretch of equal values."""
    changes = torch.nonzero(values[1:] != values[:-1]).flatten() + 1
    return pairwise([0, *changes.tolist(), len(values)])


def _continues(first: Run, modalities: Mapping[str, Modality]) -> bool:
    if first.segment.positions_2d is not None:
        return bool(first.segment.positions_2d[0].any())
    opening = modalities[first.modality].opening_segment()
    return opening is not None and not torch.equal(first.segment.features[0], opening.features[0])


def _goes_on(last: Run, modalities: Mapping[str, Modality]) -> bool:
    closing = modalities[last.modality].closing_segment()
    if closing is None or not last.supervised[-1]:  # mere context at the end of a document is not closed
        return False
    return not torch.equal(last.segment.features[-1], closing.features[-1])
