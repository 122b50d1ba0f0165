"""From encoded documents to `Batch`: cutting into pieces, filling rows, collating.

Notable:
- A document longer than a row becomes several pieces that overlap by ONE token: the last token of a
  piece is repeated, as mere context, at the head of the next. So every target of the document except
  its first token's finds, exactly once, a predecessor that predicts it.
- A piece is a document of its own for positions and attention; its first token has no predecessor
  and is never supervised.
- One medium is never cut: a segment with `positions_2d` has an inner geometry and goes whole into
  one piece. Segments without (text, series) are cut wherever the row ends.
- Where a batch has a budget of pixels, no piece exceeds it by itself: a document of many media is cut
  between them.
- Every batch of a run has the same [B, T] shape and the same modalities: missing rows are padding,
  missing modalities have zero tokens with the right trailing shapes, taken from a prototype.
- A batch is laid out with one array operation a part, not one a document: short documents are as
  fast as long ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onn_lightning.batch import PADDING_DOCUMENT, Batch, ModalityTokens, Segment
from onn_lightning.modality import BadSampleError, Modality


@dataclass(frozen=True)
class Piece:
    """A run of segments of one document that stands in one row.

    Args:
        segments: in reading order, none empty.
        pixels: what it takes of a batch's budget of pixels; 0 where there is none.
    """

    segments: tuple[Segment, ...]
    pixels: int = 0
    length: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", sum(map(len, self.segments)))

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class PixelBudget:
    """How many pixels (spectrogram cells) a batch may hold.

    Args:
        max_pixels: of a batch.
        modalities: the run's modalities by name; they count the pixels of a segment.
    """

    max_pixels: int
    modalities: Mapping[str, Modality]

    def pixels(self, segment: Segment) -> int:
        """What a segment takes."""
        return self.modalities[segment.modality].pixels(segment)


def split_document(
    segments: Sequence[Segment], row_length: int, budget: PixelBudget | None = None
) -> list[Piece]:
    """Cut a document into pieces that each fit in a row.

    Args:
        segments: the document, none empty.
        row_length: tokens in a row, at least 2.
        budget: pixels that a piece may hold; None: any number.
    Returns:
        One piece if the document fits; otherwise pieces that overlap by one token.
    Raises:
        BadSampleError: if a medium does not fit in one row, or in the budget, beside the token that
            predicts it.
    """
    if budget is None and sum(map(len, segments)) <= row_length:
        return [Piece(tuple(segments))] if segments else []
    cutter = _Cutter(row_length, budget)
    for segment in segments:
        cutter.add(segment)
    return cutter.finish()


class _Cutter:
    """The piece that is being filled, and those before it."""

    def __init__(self, row_length: int, budget: PixelBudget | None) -> None:
        self._row_length = row_length
        self._budget = budget
        self._pieces: list[Piece] = []
        self._current: list[Segment] = []
        self._room = row_length
        self._pixels = 0

    def add(self, segment: Segment) -> None:
        if segment.positions_2d is None:
            start = 0
            while start < len(segment):
                if self._room == 0:
                    self._begin_piece()
                part = segment[start : start + self._room]
                self._put(part)
                start += len(part)
        else:
            self._check(segment)
            if len(segment) > self._room or self._exceeds(segment):
                self._begin_piece()
            if self._exceeds(segment):
                assert self._budget is not None
                raise BadSampleError(
                    f"a medium of modality '{segment.modality}' has {self._budget.pixels(segment)} pixels "
                    f"(cells), and {self._pixels} stand before it, a batch may hold "
                    f"{self._budget.max_pixels}: lower the modality's budget (fewer tokens, smaller size, "
                    "shorter duration) or raise `max_pixels_per_batch`"
                )
            self._put(segment)

    def finish(self) -> list[Piece]:
        if self._current:
            self._pieces.append(Piece(tuple(self._current), self._pixels))
        return self._pieces

    def _check(self, medium: Segment) -> None:
        if len(medium) > self._row_length - 1:
            raise BadSampleError(
                f"a medium of modality '{medium.modality}' has {len(medium)} tokens, a row has room "
                f"for {self._row_length - 1} beside the token before it: lower the modality's budget (fewer "
                "tokens, smaller size, shorter duration, larger patch) or raise `row_length`"
            )

    def _exceeds(self, segment: Segment) -> bool:
        budget = self._budget
        return budget is not None and self._pixels + budget.pixels(segment) > budget.max_pixels

    def _put(self, segment: Segment) -> None:
        self._current.append(segment)
        self._room -= len(segment)
        if self._budget is not None:
            self._pixels += self._budget.pixels(segment)

    def _begin_piece(self) -> None:
        if not self._current:
            return
        self.finish()
        last = self._current[-1][-1:].without_loss()
        self._current, self._room, self._pixels = [], self._row_length, 0
        self._put(last)


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
        layout = _Layout(rows, self.rows_per_batch, self.row_length)
        segments = [segment for row in rows for piece in row for segment in piece.segments]
        parts: dict[str, list[Segment]] = {name: [] for name in self.prototypes}
        for segment in segments:
            if segment.modality not in parts:
                raise ValueError(
                    f"the data holds modality '{segment.modality}', of which no source showed a sample "
                    "during setup: let the source's `indices_with` find it"
                )
            parts[segment.modality].append(segment)
        lengths = np.array([len(segment) for segment in segments], np.int64)
        numbers = np.array([self.modality_ids[segment.modality] for segment in segments], np.int64)
        numbers = np.repeat(numbers, lengths)  # [n] modality of each token
        supervised = _supervised(segments, lengths) & (layout.positions > 0)
        modalities = {}
        for name, prototype in self.prototypes.items():
            inside = numbers == self.modality_ids[name]
            places, predicted = layout.places[inside], supervised[inside]
            modalities[name] = _joined(prototype, parts[name], places, predicted)
        return Batch(
            modality_ids=layout.spread(numbers, -1),
            positions=layout.spread(layout.positions, 0),
            document_ids=layout.spread(layout.documents, PADDING_DOCUMENT),
            modalities=modalities,
            source=source,
        )


class _Layout:
    """Where the n tokens of a batch stand, in reading order.

    Args:
        rows: the pieces of each row.
        rows_per_batch: B.
        row_length: T.
    """

    def __init__(self, rows: Sequence[Sequence[Piece]], rows_per_batch: int, row_length: int) -> None:
        if len(rows) > rows_per_batch:
            raise ValueError(f"{len(rows)} rows do not fit in a batch of {rows_per_batch}")
        self._shape = (rows_per_batch, row_length)
        lengths = np.array([piece.length for row in rows for piece in row], np.int64)
        documents = np.array([number for row in rows for number in range(len(row))], np.int64)
        row_numbers = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        used = np.bincount(row_numbers, lengths, len(rows)).astype(np.int64)  # [rows] tokens
        if (used > row_length).any():
            raise ValueError(f"the pieces of row {used.argmax()} hold more than {row_length} tokens")
        begins = np.cumsum(lengths) - lengths
        tokens = np.arange(lengths.sum())
        self.positions = tokens - np.repeat(begins, lengths)
        """[n] position in the piece."""
        self.documents = np.repeat(documents, lengths)
        """[n] number of the piece in its row."""
        self.places = tokens + np.repeat(np.arange(len(rows)) * row_length - np.cumsum(used) + used, used)
        """[n] flat place in [B * T]."""

    def spread(self, values: NDArray[np.int64], padding: int) -> Tensor:
        """[n] values of the tokens -> [B, T]."""
        flat = np.full(self._shape[0] * self._shape[1], padding, np.int64)
        flat[self.places] = values
        return torch.from_numpy(flat).view(self._shape)


def _supervised(segments: Sequence[Segment], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n] whether a token's segment asks for its prediction."""
    supervised = np.repeat(np.array([segment.targets is not None for segment in segments], bool), lengths)
    for segment, end in zip(segments, np.cumsum(lengths).tolist(), strict=True):
        if segment.loss_mask is not None:
            supervised[end - len(segment) : end] &= segment.loss_mask.numpy()
    return supervised


def _joined(
    prototype: Segment,
    segments: Sequence[Segment],
    places: NDArray[np.int64],
    supervised: NDArray[np.bool_],
) -> ModalityTokens:
    """The tokens of one modality.

    Args:
        prototype: an empty segment of it.
        segments: its segments in reading order, n tokens in all.
        places: [n] flat places of its tokens.
        supervised: [n] whether they are predicted; never where a segment has no targets.
    """
    targets = _cat(prototype.targets, [segment.targets for segment in segments])
    given = np.repeat([segment.targets is not None for segment in segments], [len(s) for s in segments])
    return ModalityTokens(
        features=torch.cat([prototype.features, *(segment.features for segment in segments)]),
        indices=torch.from_numpy(places),
        positions_2d=_cat(prototype.positions_2d, [segment.positions_2d for segment in segments]),
        targets=None if targets is None else targets[torch.from_numpy(supervised[given.astype(bool)])],
        source_indices=None if targets is None else torch.from_numpy(places[supervised] - 1),
    )


def _cat(empty: Tensor | None, parts: Sequence[Tensor | None]) -> Tensor | None:
    if empty is None:
        return None
    return torch.cat([empty, *(part for part in parts if part is not None)])
