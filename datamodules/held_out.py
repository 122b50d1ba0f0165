"""`HeldOutStream`: every document of a held-out source exactly once, in the same batches every time.

Notable:
- A row begins with the oldest piece and is filled by best fit: nearly without padding, and the same
  whoever reads.
- Batches do not depend on the number of ranks: all ranks pack the same batches and each takes its own.
  Where they do not come out even, the last ones are pure padding, since ranks that run different
  numbers of forward passes would wait for each other forever.
- A piece that would exceed the batch's budget of pixels waits for the next batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

from torch.utils.data import IterableDataset

from datamodules.packing import Collator, Piece
from datamodules.sources import Source
from datamodules.stream import DocumentPieces, Replica
from datamodules.waiting import WaitingPieces
from onn_lightning.batch import Batch


class HeldOutStream(IterableDataset[Batch]):
    """Every document of one source exactly once, in order.

    Args:
        name: of the source; the batches carry it.
        source: what is read.
        read: documents -> pieces.
        collator: rows -> batch.
        look_ahead: pieces among which rows are filled.
        replica: which of the batches are given here.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        read: DocumentPieces,
        collator: Collator,
        look_ahead: int,
        replica: Replica,
    ) -> None:
        self.name = name
        self.source = source
        self.read = read
        self.collator = collator
        self.look_ahead = look_ahead
        self.replica = replica

    def __iter__(self) -> Iterator[Batch]:
        number = 0  # of the batch among those of all replicas
        for rows in self._batches():
            if number % self.replica.count == self.replica.number:
                yield self.collator(rows, self.name)
            number += 1
        while number % self.replica.count:
            if number % self.replica.count == self.replica.number:
                yield self.collator([], self.name)
            number += 1

    def _batches(self) -> Iterator[list[list[Piece]]]:
        """The rows of each batch of all replicas."""
        waiting = WaitingPieces()
        budget = math.inf if self.read.max_pixels is None else self.read.max_pixels
        rows: list[list[Piece]] = []
        pixel_room = budget
        for piece in chain(self._pieces(), [None]):  # None: the end
            if piece is not None:
                waiting.append(piece)
            while len(waiting) > (0 if piece is None else self.look_ahead):
                row = self._fill(waiting, pixel_room)
                if row:
                    rows.append(row)
                    pixel_room -= sum(piece.pixels for piece in row)
                if not row or len(rows) == self.collator.rows_per_batch:
                    yield rows
                    rows, pixel_room = [], budget
        if rows:
            yield rows

    def _pieces(self) -> Iterator[Piece]:
        for index in range(len(self.source)):
            yield from self.read(self.name, self.source, index) or []

    def _fill(self, waiting: WaitingPieces, pixel_room: float) -> list[Piece]:
        """Take the pieces of a row; none where all of them exceed the room for pixels."""
        row: list[Piece] = []
        room = self.collator.row_length
        chosen = 0 if waiting[0].pixels <= pixel_room else waiting.best_fit(room, pixel_room)
        while chosen is not None:
            row.append(waiting.pop(chosen))
            room -= row[-1].length
            pixel_room -= row[-1].pixels
            chosen = waiting.best_fit(room, pixel_room) if room else None
        return row
