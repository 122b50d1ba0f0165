"""`RepetitionFilter`: drops documents that say the same over and over.

Notable:
- Gopher's measures (Rae et al. 2021, arXiv 2112.11446, table A1) as shares of characters: in repeated lines
  and paragraphs, in the most frequent n-gram, in repeated n-grams. Its COUNTS of repeated lines are left
  out: in a play every third line is a speaker's name.
- n-grams are of words where words are spaced, of characters where not. A Chinese word has about 1.6
  characters, so that n is larger there for the same limits: 5 words correspond to 8 characters.
- Linear in the text: n-grams roll, and sets are open hash tables in compiled loops.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from datatrove.data import Document

from datamodules.prepare.filters.characters import code_points_of, kinds_of
from datamodules.prepare.filters.layout import Lines, find_lines
from datamodules.prepare.filters.words import Counts, Hashes, Words, find_words, mix, ngram_hashes
from datamodules.prepare.step import Filter
from onn_lightning.compiled import kernel


@dataclass(frozen=True)
class NgramLimits:
    """Largest shares of a text's characters, by length of the n-gram.

    Args:
        top: in all occurrences of the most frequent n-gram.
        repeated: in n-grams that occurred before.
    """

    top: dict[int, float] = field(default_factory=dict)
    repeated: dict[int, float] = field(default_factory=dict)


GOPHER_WORDS = NgramLimits({2: 0.20, 3: 0.18, 4: 0.16}, {5: 0.15, 10: 0.10})
"""Gopher's own; of its six lengths from 5 to 10 the first and the last."""
GOPHER_CHARACTERS = NgramLimits({3: 0.20, 5: 0.18, 6: 0.16}, {8: 0.15, 16: 0.10})
"""The same in characters at 1.6 a word."""


class RepetitionFilter(Filter):
    """Drops documents in which too many characters repeat earlier ones.

    Args:
        max_repeated_lines: largest share of characters in lines that occurred before (Gopher: 0.2).
        max_repeated_paragraphs: the same of paragraphs (Gopher: 0.2).
        words: limits for texts whose words are spaced.
        characters: limits for texts in scripts without spaces, n counting characters.
        min_words: shorter documents are kept: in a few words everything is a large share.
    """

    name = "repetition"

    def __init__(
        self,
        max_repeated_lines: float = 0.2,
        max_repeated_paragraphs: float = 0.2,
        words: NgramLimits = GOPHER_WORDS,
        characters: NgramLimits = GOPHER_CHARACTERS,
        min_words: int = 50,
    ) -> None:
        super().__init__()
        self.max_repeated_lines = max_repeated_lines
        self.max_repeated_paragraphs = max_repeated_paragraphs
        self.words, self.characters = words, characters
        self.min_words = min_words

    def judge(self, document: Document) -> str | None:
        """Name the first measure that is beyond its limit."""
        code_points = code_points_of(document.text)
        kinds = kinds_of(code_points)
        words = find_words(code_points, kinds)
        if len(words) < self.min_words:
            return None
        lines = find_lines(code_points, kinds)
        if repeated_share(lines) > self.max_repeated_lines:
            return "repeated lines"
        if repeated_share(lines.joined()) > self.max_repeated_paragraphs:
            return "repeated paragraphs"
        limits, unit = (self.characters, "character") if words.unspaced else (self.words, "word")
        for n, limit in limits.top.items():
            if top_ngram_share(words, n) > limit:
                return f"one {n}-{unit} sequence too often"
        for n, limit in limits.repeated.items():
            if repeated_ngram_share(words, n) > limit:
                return f"repeated {n}-{unit} sequences"
        return None


def repeated_share(lines: Lines) -> float:
    """Share of the lines' characters that are in lines that occurred before."""
    lengths = lines.lengths
    _, first = np.unique(lines.hashes, return_index=True)
    return 1 - float(lengths[first].sum() / max(1, lengths.sum()))


def top_ngram_share(words: Words, n: int) -> float:
    """Share of the words' characters in the most frequent run of n words, its occurrences added up.

    Occurrences may overlap; of several n-grams as frequent the first counts. At most 1.
    """
    ngrams = mix(ngram_hashes(words, n))
    if not len(ngrams):
        return 0.0
    place, count = _most_frequent(ngrams, *_table(len(ngrams)))
    length = int(words.lengths[place : place + n].sum())
    return min(1.0, count * length / int(words.lengths.sum()))


def repeated_ngram_share(words: Words, n: int) -> float:
    """Share of the words' characters in runs of n words that occurred before.

    Read from left to right; what was counted is stepped over, so that no character counts twice.
    """
    ngrams = mix(ngram_hashes(words, n))
    if not len(ngrams):
        return 0.0
    return _repeated_characters(ngrams, words.lengths, n, *_table(len(ngrams))) / int(words.lengths.sum())


def _table(entries: int) -> tuple[Hashes, npt.NDArray[np.int32]]:
    """Keys and counts of an empty open hash table, at most half full."""
    size = 1 << max(4, (2 * entries - 1).bit_length())
    return np.empty(size, dtype=np.uint64), np.zeros(size, dtype=np.int32)


@kernel
def _most_frequent(ngrams: Hashes, keys: Hashes, counts: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Where the most frequent value stands first, and how often it occurs."""
    mask = np.uint64(len(keys) - 1)
    one = np.uint64(1)
    most = 0
    for value in ngrams:
        slot = value & mask
        while counts[slot] and keys[slot] != value:
            slot = (slot + one) & mask
        keys[slot] = value
        counts[slot] += 1
        most = max(most, counts[slot])
    for place in range(len(ngrams)):
        slot = ngrams[place] & mask
        while keys[slot] != ngrams[place]:
            slot = (slot + one) & mask
        if counts[slot] == most:
            return place, most
    return 0, 0


@kernel
def _repeated_characters(
    ngrams: Hashes, lengths: Counts, n: int, keys: Hashes, counts: npt.NDArray[np.int32]
) -> int:
    mask = np.uint64(len(keys) - 1)
    one = np.uint64(1)
    characters, place = 0, 0
    while place < len(ngrams):
        value = ngrams[place]
        slot = value & mask
        while counts[slot] and keys[slot] != value:
            slot = (slot + one) & mask
        if counts[slot]:
            for word in range(place, place + n):
                characters += lengths[word]
            place += n
        else:
            keys[slot], counts[slot] = value, 1
            place += 1
    return characters
