"""`WaitingPieces`: the pieces among which a row is filled.

Notable:
- Lengths stand beside the pieces in one array: the best fit among thousands is found without a loop.
"""

from __future__ import annotations

import math

import numpy as np

from datamodules.packing import Piece


class WaitingPieces:
    """Pieces in the order they came, or with the last one moved into each gap."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._sizes = np.zeros((2, 64), np.int64)  # tokens and pixels, with room for pieces to come
        self.tokens = 0
        """Tokens of all pieces together."""

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Piece:
        return self._pieces[index]

    def append(self, piece: Piece) -> None:
        """Add a piece at the end."""
        count = len(self._pieces)
        if count == self._sizes.shape[1]:
            self._sizes = np.concatenate([self._sizes, np.zeros_like(self._sizes)], axis=1)
        self._sizes[:, count] = piece.length, piece.pixels
        self._pieces.append(piece)
        self.tokens += piece.length

    def pop(self, index: int) -> Piece:
        """Take a piece out; those behind it move up."""
        count = len(self._pieces)
        self._sizes[:, index : count - 1] = self._sizes[:, index + 1 : count]
        piece = self._pieces.pop(index)
        self.tokens -= piece.length
        return piece

    def swap_pop(self, index: int) -> Piece:
        """Take a piece out; the last one takes its place."""
        piece = self._pieces[index]
        self._pieces[index] = self._pieces[-1]
        self._pieces.pop()
        self._sizes[:, index] = self._sizes[:, len(self._pieces)]
        self.tokens -= piece.length
        return piece

    def best_fit(self, room: int, pixel_room: float = math.inf) -> int | None:
        """Index of the longest piece of at most `room` tokens (the first such), or None.

        Args:
            room: tokens.
            pixel_room: pixels that the piece may take.
        """
        lengths, pixels = self._sizes[:, : len(self._pieces)]
        fitting = lengths * (lengths <= room)
        if pixel_room < math.inf:
            fitting *= pixels <= pixel_room
        best = int(fitting.argmax()) if len(fitting) else 0
        return best if len(fitting) and fitting[best] else None
