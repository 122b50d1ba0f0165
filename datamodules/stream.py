"""The training stream: documents -> pieces -> shuffled, mixed and packed batches, resumable anywhere.

Notable:
- Pieces wait in a bounded buffer. A row is filled with pieces drawn at random until one does not fit,
  and its end by best fit: shuffled, and nearly without padding.
- A piece that would exceed the batch's budget of pixels stays in the buffer for a later batch.
- A batch is made on order: the order names the reader and the mixture weights, and with the batch comes
  the reader's place after it. So the main process always holds the exact place of what it was given,
  whatever the loader workers have read ahead; and a change of weights takes effect at a certain
  batch, not at a certain moment.
- Of the buffer, a place holds only where its pieces came from; on resume they are encoded again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.bad_samples import BadSampleLog
from datamodules.mixture import Mixture, PieceRef
from datamodules.order import mix
from datamodules.packing import Collator, Piece, PixelBudget, split_document
from datamodules.parcel import Parcel
from datamodules.places import Buffered, ReaderPlace
from datamodules.sources import Source
from datamodules.waiting import WaitingPieces
from onn_lightning.batch import Batch
from onn_lightning.document import encode_document
from onn_lightning.modality import BadSampleError, Modality

_REJECTIONS = 8  # draws in a row that exceed the budget of pixels before the row is filled by best fit


@dataclass(frozen=True)
class Replica:
    """Which of the data-parallel copies of the model this process feeds.

    Args:
        number: 0 <= number < count.
        count: how many copies read different data.
    """

    number: int = 0
    count: int = 1


class DocumentPieces:
    """Documents of a source -> pieces; bad ones are logged and give None.

    Args:
        modalities: the run's modalities by name.
        row_length: tokens in a row.
        bad_samples: where bad samples are counted.
        split: "train", "validation", ...: bad samples are counted under `split/name`.
        max_pixels: pixels that a batch may hold; None: any number.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        row_length: int,
        bad_samples: BadSampleLog,
        split: str,
        max_pixels: int | None = None,
    ) -> None:
        self.modalities = modalities
        self.row_length = row_length
        self.bad_samples = bad_samples
        self.split = split
        self.max_pixels = max_pixels
        self._budget = None if max_pixels is None else PixelBudget(max_pixels, modalities)

    def __call__(self, name: str, source: Source, index: int) -> list[Piece] | None:
        try:
            segments = encode_document(source[index], self.modalities)
            if not segments:
                raise BadSampleError("the document has no tokens; remove it")
            pieces = split_document(segments, self.row_length, self._budget)
        except BadSampleError as error:
            self.bad_samples.bad(f"{self.split}/{name}", source.describe(index), error)
            return None
        self.bad_samples.good()
        return pieces


@dataclass(frozen=True)
class BatchOrder:
    """What the main process asks of a loader worker.

    Args:
        reader: which of this rank's readers is to make the batch.
        weights: mixture weights of the sources.
    """

    reader: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Delivery:
    """A batch, and where its reader stands after it (plain data)."""

    batch: Batch
    place: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _delivered, (Parcel.of(self.batch), self.place)

    def pin_memory(self) -> Delivery:
        """The loader calls this."""
        return Delivery(self.batch.pin_memory(), self.place)


def _delivered(parcel: Parcel, place: dict[str, Any]) -> Delivery:
    return Delivery(parcel.batch(), place)


class TrainStream(Dataset[Delivery]):
    """Endless batches of shuffled, mixed and packed documents, made on order.

    Args:
        sources: by name.
        read: documents -> pieces.
        collator: rows -> batch.
        seed: of every order and draw.
        buffer_size: pieces among which rows are drawn.
        poll_seconds: how often to look for new documents where there are none.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        read: DocumentPieces,
        collator: Collator,
        seed: int,
        buffer_size: int,
        poll_seconds: float,
    ) -> None:
        self.sources = sources
        self.read = read
        self.collator = collator
        self.seed = seed
        self.buffer_size = buffer_size
        self.poll_seconds = poll_seconds
        self.closed = torch.zeros(1, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        """No longer 0: nobody wants any more batches."""
        self._begin: Sequence[ReaderPlace] = ()
        self._first_reader = 0
        self._readers: dict[int, TrainReader] = {}

    def begin_at(self, places: Sequence[ReaderPlace], first_reader: int) -> None:
        """Where the readers begin that are asked for batches from now on.

        Args:
            places: of this rank's readers.
            first_reader: number of the first of them among those of all ranks.
        """
        self._begin = places
        self._first_reader = first_reader
        self._readers = {}
        self.closed.zero_()

    def __getitem__(self, order: BatchOrder) -> Delivery:
        if order.reader not in self._readers:
            number = self._first_reader + order.reader
            self._readers[order.reader] = TrainReader(self, number, self._begin[order.reader])
        reader = self._readers[order.reader]
        reader.mixture.set_weights(order.weights)
        return Delivery(next(reader), reader.place().plain())


class TrainReader(Iterator[Batch]):
    """One reader's pass through a `TrainStream`.

    Args:
        stream: what is read.
        number: of this reader among all loader workers of all replicas.
        place: where to begin.
    Raises:
        ValueError: if a document of the place's buffer has changed.
    """

    def __init__(self, stream: TrainStream, number: int, place: ReaderPlace) -> None:
        self.mixture = Mixture(stream.sources, stream.seed, place, stream.read, stream.poll_seconds)
        self._stream = stream
        self._draw_key = mix(stream.seed, number)
        self._draws = place.draws
        self._max_pixels = stream.read.max_pixels
        self._refs = Buffered()
        self._pieces = WaitingPieces()
        for source, position, piece_number, piece in zip(
            place.buffered.sources,
            place.buffered.positions,
            place.buffered.numbers,
            self.mixture.pieces_at(place.buffered),
            strict=True,
        ):
            self._put(PieceRef(source, position, piece_number), piece)

    def __next__(self) -> Batch:
        collator = self._stream.collator
        rows: list[list[Piece]] = []
        pixel_room = math.inf if self._max_pixels is None else self._max_pixels
        for _ in range(collator.rows_per_batch):
            rows.append(self._next_row(pixel_room))
            pixel_room -= sum(piece.pixels for piece in rows[-1])
        return collator(rows)

    def place(self) -> ReaderPlace:
        """The exact place in the data, between two batches."""
        refs = self._refs
        return ReaderPlace(
            self.mixture.places(),
            self.mixture.weights,
            Buffered(list(refs.sources), list(refs.positions), list(refs.numbers)),
            self._draws,
        )

    def _next_row(self, pixel_room: float) -> list[Piece]:
        self._fill_buffer()
        row: list[Piece] = []
        room = self._stream.collator.row_length
        rejections = 0
        while len(self._pieces) and rejections < _REJECTIONS:
            drawn = mix(self._draw_key, self._draws) % len(self._pieces)
            self._draws += 1
            piece = self._pieces[drawn]
            if piece.length > room:
                break
            if piece.pixels > pixel_room:
                rejections += 1
                continue
            rejections = 0
            row.append(self._take(drawn))
            room -= piece.length
            pixel_room -= piece.pixels
        while room and (fitting := self._pieces.best_fit(room, pixel_room)) is not None:
            row.append(self._take(fitting))
            room -= row[-1].length
            pixel_room -= row[-1].pixels
        return row

    def _fill_buffer(self) -> None:
        """Up to its size; where the sources have nothing for now, at least to the tokens of a row."""
        while len(self._pieces) < self._stream.buffer_size:
            taken = self.mixture.next_piece()
            if taken is not None:
                self._put(*taken)
            elif self._pieces.tokens < self._stream.collator.row_length:
                self.mixture.wait(self._stream.closed)
            else:
                break

    def _put(self, ref: PieceRef, piece: Piece) -> None:
        self._refs.sources.append(ref.source)
        self._refs.positions.append(ref.position)
        self._refs.numbers.append(ref.number)
        self._pieces.append(piece)

    def _take(self, index: int) -> Piece:
        for column in (self._refs.sources, self._refs.positions, self._refs.numbers):
            column[index] = column[-1]
            column.pop()
        return self._pieces.swap_pop(index)
