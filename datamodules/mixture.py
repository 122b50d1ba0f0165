"""Which document comes next: seeded order of each source, and the share of each in the mixture.

Notable:
- The order of a source is a permutation computed, not stored: a Feistel network over the document
  numbers, so that shuffling a billion documents costs no memory and any place in it is reached at
  once on resume. Every epoch of every source has its own.
- The epochs of a source, one after the other, are one endless row of documents; reader r of R takes
  every R-th of them. So each document is read once an epoch, by exactly one reader, whatever their
  numbers, and no reader ever waits at the end of an epoch.
- Shares are counted in tokens, not documents: the source that is furthest behind its share is next.
  At any moment each is within one piece of what its weight promises.
- All randomness is a hash of (seed, place): there is no generator state to save.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datamodules.packing import Piece
from datamodules.sources import Source

_MASK = (1 << 64) - 1
_FEISTEL_ROUNDS = 6

PieceReader = Callable[[str, Source, int], list[Piece] | None]
"""(name, source, index) -> the pieces of one document, or None where it is damaged."""


def mix(*values: int) -> int:
    """A well-mixed 64-bit hash of integers.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), chained.
    """
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def shuffled(place: int, length: int, key: int) -> int:
    """The number that stands at a place of a pseudo-random order of `range(length)`.

    Args:
        place: 0 <= place < length.
        length: how many numbers are permuted.
        key: chooses the permutation.
    Source: balanced Feistel network with cycle walking (Black and Rogaway 2002).
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:  # the network permutes a power of four, below 4 * length: walk until inside
        left, right = place >> half, place & low
        for number in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (mix(key, number, right) & low)
        place = left << half | right
        if place < length:
            return place


@dataclass(frozen=True)
class PieceRef:
    """Where a piece comes from: enough to make it again.

    Args:
        source: name of the source.
        position: place of its document in the reader's endless row of documents.
        number: which piece of the document.
    """

    source: str
    position: int
    number: int


class Cursor:
    """One reader's place in one source."""

    def __init__(self, name: str, source: Source, seed: int, reader: int, readers: int) -> None:
        self.name = name
        self.source = source
        self.position = 0  # of the document being read
        self.number = 0  # of the next of its pieces
        self.served = 0.0  # tokens given so far, divided by the weight
        self._key = mix(seed, zlib.crc32(name.encode()))
        self._reader = reader
        self._readers = readers
        self._length = len(source)
        self._pieces: list[Piece] | None = None

    def index_at(self, position: int) -> int:
        """Document that stands at a place of this reader's row."""
        epoch, place = divmod(self._reader + position * self._readers, self._length)
        return shuffled(place, self._length, mix(self._key, epoch))

    def next_piece(self, read: PieceReader) -> tuple[PieceRef, Piece]:
        """Take the next piece, skipping documents that cannot be read."""
        while self._pieces is None or self.number >= len(self._pieces):
            if self._pieces is not None:
                self.position, self.number = self.position + 1, 0
            self._pieces = read(self.name, self.source, self.index_at(self.position))
            if self._pieces is None:
                self.position, self.number = self.position + 1, 0
        ref = PieceRef(self.name, self.position, self.number)
        piece = self._pieces[self.number]
        self.number += 1
        self.served += len(piece) / self.source.weight
        return ref, piece


class Mixture:
    """An endless stream of pieces out of several sources, by share of tokens.

    Args:
        sources: by name.
        seed: of the order of documents.
        reader: number of this reader among all loader workers of all ranks.
        readers: how many there are.
        read: turns a document into pieces.
    """

    def __init__(
        self, sources: Mapping[str, Source], seed: int, reader: int, readers: int, read: PieceReader
    ) -> None:
        self._cursors = {
            name: Cursor(name, source, seed, reader, readers) for name, source in sources.items()
        }
        self._read = read

    def next_piece(self) -> tuple[PieceRef, Piece]:
        """The next piece, of the source that is furthest behind its share."""
        cursor = min(self._cursors.values(), key=lambda each: each.served)
        return cursor.next_piece(self._read)

    def pieces_at(self, refs: list[PieceRef]) -> list[Piece]:
        """Make pieces again that were given out before; each document is read once.

        Raises:
            ValueError: if a document has changed or can no longer be read.
        """
        documents: dict[tuple[str, int], list[Piece]] = {}
        pieces: list[Piece] = []
        for ref in refs:
            key = ref.source, ref.position
            cursor = self._cursors[ref.source]
            index = cursor.index_at(ref.position)
            if key not in documents:
                documents[key] = self._read(ref.source, cursor.source, index) or []
            if ref.number >= len(documents[key]):
                raise ValueError(
                    f"cannot resume: {cursor.source.describe(index)} no longer gives what it gave when the "
                    "checkpoint was written; restore the data"
                )
            pieces.append(documents[key][ref.number])
        return pieces

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The place in every source, as plain numbers."""
        return {
            name: {"position": cursor.position, "number": cursor.number, "served": cursor.served}
            for name, cursor in self._cursors.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go to the places of `state_dict`; the caller has checked that the sources are the same."""
        for name, place in state.items():
            cursor = self._cursors[name]
            cursor.position, cursor.number = place["position"], place["number"]
            cursor.served = place["served"]
