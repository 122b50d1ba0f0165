"""In which order the documents of a source are read: rows of positions, computed and never stored.

Notable:
- A source is an endless row of positions. `EpochRow`: one epoch after the other, each a permutation of
  all documents. `GrowingRow`: block after block, each permuted by itself and read once; the row goes
  on where a block is added.
- The permutation is a Feistel network over the document numbers: shuffling a billion documents costs
  no memory, and any place in it is reached at once on resume. Many places are computed together.
- All randomness is a hash of (seed, place): there is no generator state to save, and every reader
  sees the same row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from datamodules.sources import Source

_MASK = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FEISTEL_ROUNDS = 6

Positions = NDArray[np.int64]


def mix(*values: int) -> int:
    """A well-mixed 64-bit hash of integers.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), chained.
    """
    state = 0
    for value in values:
        state = (state + (value & _MASK) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state


def mix_each(state: int, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix(*begun, value)` of every value, where `state` is `mix(*begun)`."""
    mixed = values + np.uint64((state + _GOLDEN) & _MASK)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))


def shuffled(places: Positions, length: int, key: int) -> Positions:
    """The numbers that stand at places of a pseudo-random order of `range(length)`.

    Args:
        places: each 0 <= place < length.
        length: how many numbers are permuted.
        key: chooses the permutation.
    Source: balanced Feistel network with cycle walking (Black and Rogaway 2002).
    """
    if length == 1:
        return np.zeros_like(places)
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    states = [mix(key, number) for number in range(_FEISTEL_ROUNDS)]
    walking = places.astype(np.uint64)
    outside = np.arange(len(places))
    while len(outside):  # the network permutes a power of four, below 4 * length: walk until inside
        left, right = walking[outside] >> shift, walking[outside] & low
        for state in states:
            left, right = right, left ^ (mix_each(state, right) & low)
        walking[outside] = left << shift | right
        outside = outside[walking[outside] >= length]
    return walking.astype(np.int64)


class Row(ABC):
    """The endless row of positions of one source."""

    @property
    @abstractmethod
    def limit(self) -> int | None:
        """How many positions stand for a document so far; None: all."""

    @abstractmethod
    def documents(self, positions: Positions) -> Positions:
        """Numbers of the documents at positions, ascending and below `limit`."""


class EpochRow(Row):
    """Epochs, one after the other, each a permutation of all documents.

    Args:
        length: documents in the source.
        key: chooses the order.
    """

    def __init__(self, length: int, key: int) -> None:
        self._length = length
        self._key = key

    @property
    def limit(self) -> None:
        return None

    def documents(self, positions: Positions) -> Positions:
        epochs, places = np.divmod(positions, self._length)
        documents = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            inside = epochs == epoch
            documents[inside] = shuffled(places[inside], self._length, mix(self._key, epoch))
        return documents


class GrowingRow(Row):
    """The blocks of a source that may grow, each permuted by itself and read once.

    Args:
        source: a source that follows its corpus.
        key: chooses the order.
    """

    def __init__(self, source: Source, key: int) -> None:
        self._source = source
        self._key = key

    @property
    def limit(self) -> int:
        return len(self._source)

    def documents(self, positions: Positions) -> Positions:
        ends = self._source.block_ends
        documents = np.empty_like(positions)
        done = 0
        while done < len(positions):
            block = bisect_right(ends, int(positions[done]))
            start = ends[block - 1] if block else 0
            until = int(np.searchsorted(positions, ends[block]))
            places = positions[done:until] - start
            documents[done:until] = start + shuffled(places, ends[block] - start, mix(self._key, block))
            done = until
        return documents


def row_of(source: Source, key: int) -> Row:
    """The row that suits a source."""
    return GrowingRow(source, key) if source.follows else EpochRow(len(source), key)
