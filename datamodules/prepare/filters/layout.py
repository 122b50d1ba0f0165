"""Lines and paragraphs of a text, as arrays: where they are, how they begin and end, what they repeat.

Notable:
- Lines end at LF and nowhere else (`str.splitlines` also cuts at NEL, VT, FS and U+2028). Blank lines are
  no lines; spaces at both ends belong to none.
- A paragraph is what stands between blank lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamodules.prepare.filters.characters import NEWLINE, SPACE, CodePoints, Kinds
from datamodules.prepare.filters.words import HASH_PRIME, HASH_START
from onn_lightning.compiled import kernel

Places = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Lines:
    """The lines of a text that are not blank.

    Args:
        starts, ends: [n] of each in code points, spaces at its ends left out.
        hashes: [n] of its characters.
        paragraphs: [n] number of the paragraph it is in, from 0.
    """

    starts: Places
    ends: Places
    hashes: Hashes
    paragraphs: Places

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Places:
        """[n] characters of each line."""
        return self.ends - self.starts

    def joined(self) -> Lines:
        """The paragraphs, as if each were one line."""
        if not len(self):
            return self
        first = np.flatnonzero(np.diff(self.paragraphs, prepend=-1))
        hashes = np.empty(len(first), dtype=np.uint64)
        _join(self.hashes, self.paragraphs, hashes)
        last = np.append(first[1:], len(self)) - 1
        return Lines(self.starts[first], self.ends[last], hashes, self.paragraphs[first])


def find_lines(code_points: CodePoints, kinds: Kinds) -> Lines:
    """Find the lines of a text.

    Args:
        code_points, kinds: [n], see `characters`.
    """
    room = int(np.count_nonzero(kinds == NEWLINE)) + 1
    places = np.empty((3, room), dtype=np.int64)
    hashes = np.empty(room, dtype=np.uint64)
    count = _find(code_points, kinds, places, hashes)
    starts, ends, paragraphs = places[:, :count]
    return Lines(starts, ends, hashes[:count], paragraphs)


@kernel
def _find(code_points: CodePoints, kinds: Kinds, places: Places, hashes: Hashes) -> int:
    """Write starts, ends, paragraphs and hashes; returns the number of lines."""
    count, paragraph = 0, 0
    start, end = -1, 0  # of the line under way; -1: nothing but spaces so far
    value = at_end = HASH_START
    for i in range(len(code_points) + 1):
        if i == len(code_points) or kinds[i] == NEWLINE:
            if start >= 0:
                places[0, count], places[1, count], places[2, count] = start, end, paragraph
                hashes[count] = at_end
                count += 1
            elif count and places[2, count - 1] == paragraph:
                paragraph += 1
            start, value = -1, HASH_START
            continue
        space = kinds[i] == SPACE
        if start < 0:
            if space:
                continue
            start = i
        value = (value ^ np.uint64(code_points[i])) * HASH_PRIME
        if not space:
            end, at_end = i + 1, value
    return count


@kernel
def _join(hashes: Hashes, paragraphs: Places, joined: Hashes) -> None:
    """Write the hash of every paragraph: that of its lines' hashes."""
    for i in range(len(hashes)):
        paragraph = paragraphs[i]
        before = joined[paragraph] if i and paragraphs[i - 1] == paragraph else HASH_START
        joined[paragraph] = (before ^ hashes[i]) * HASH_PRIME
