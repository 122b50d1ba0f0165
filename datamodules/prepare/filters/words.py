"""Words as filters and deduplication count them: runs of letters and digits, and single Han or kana.

Notable:
- No dictionary: for counting repetitions and comparing documents, a Han character serves as well as a
  word, costs nothing to load and is the same in every language that is written without spaces.
- A word is known by the hash of its characters, case and width folded; punctuation and spaces are
  between words and never part of one. An apostrophe inside a run belongs to it (don't).
- n-grams are polynomials over the word hashes, so that the next one costs two multiplications at any n.
- The loops are compiled; hashes are ours and the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamodules.prepare.filters.characters import (
    FIRST_LONE,
    FIRST_OF_WORDS,
    CodePoints,
    Kinds,
    code_points_of,
    fold_table,
    kinds_of,
)
from onn_lightning.compiled import kernel

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

HASH_START, HASH_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
"""FNV-1a of 64 bits: value = (value ^ next) * prime."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)
CHARACTERS_A_WORD = 1.6
"""Mean length of a Chinese word: 1.3 in classical prose, 1.7 in technical."""

_APOSTROPHE, _CURLY_APOSTROPHE = 0x27, 0x2019


@dataclass(frozen=True)
class Words:
    """The words of a text.

    Args:
        hashes: [n] one a word.
        lengths: [n] characters of each.
        num_lone: how many are single characters of a script without spaces.
    """

    hashes: Hashes
    lengths: Counts
    num_lone: int

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def unspaced(self) -> bool:
        """Whether most words are single characters."""
        return 2 * self.num_lone > len(self)

    @property
    def equivalent(self) -> float:
        """How many words a dictionary would find: lone characters count 1 / 1.6."""
        return len(self) - self.num_lone + self.num_lone / CHARACTERS_A_WORD


def words_of(text: str) -> Words:
    """Find the words of a text."""
    code_points = code_points_of(text)
    return find_words(code_points, kinds_of(code_points))


def find_words(code_points: CodePoints, kinds: Kinds) -> Words:
    """Find the words of a text that was looked up already.

    Args:
        code_points, kinds: [n], see `characters`.
    """
    hashes = np.empty(len(code_points), dtype=np.uint64)
    lengths = np.empty(len(code_points), dtype=np.int64)
    count, num_lone = _find(code_points, kinds, fold_table(), hashes, lengths)
    return Words(hashes[:count], lengths[:count], num_lone)


def ngram_hashes(words: Words, n: int) -> Hashes:
    """[len(words) - n + 1] hash of every run of n words; none where there are fewer words."""
    hashes = np.empty(max(0, len(words) - n + 1), dtype=np.uint64)
    if len(hashes):
        _ngrams(words.hashes, n, hashes)
    return hashes


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble hashes, so that near ones become far (the finaliser of SplitMix64)."""
    values = (values ^ (values >> _S30)) * _MIX_1
    values = (values ^ (values >> _S27)) * _MIX_2
    return values ^ (values >> _S31)


@kernel
def _find(
    code_points: CodePoints, kinds: Kinds, fold: CodePoints, hashes: Hashes, lengths: Counts
) -> tuple[int, int]:
    """Write the words; returns how many, and how many of them are lone characters."""
    count = num_lone = 0
    length = 0  # of the run under way
    value = HASH_START
    for i in range(len(code_points)):
        code, kind = code_points[i], kinds[i]
        in_run = FIRST_OF_WORDS <= kind < FIRST_LONE
        if length and not in_run and code in (_APOSTROPHE, _CURLY_APOSTROPHE):
            following = kinds[i + 1] if i + 1 < len(kinds) else 0
            if FIRST_OF_WORDS <= following < FIRST_LONE:
                length += 1
                continue  # don't and don’t are one word
        if in_run or kind >= FIRST_LONE:
            folded = fold[code] if code < len(fold) else code
            if not in_run and length:
                hashes[count], lengths[count] = value, length
                count, length = count + 1, 0
            if not length:
                value = HASH_START
            value = (value ^ np.uint64(folded)) * HASH_PRIME
            length += 1
        if length and not in_run:
            hashes[count], lengths[count] = value, length
            num_lone += kind >= FIRST_LONE
            count, length = count + 1, 0
    if length:
        hashes[count], lengths[count] = value, length
        count += 1
    return count, num_lone


@kernel
def _ngrams(hashes: Hashes, n: int, ngrams: Hashes) -> None:
    power = np.uint64(1)
    value = np.uint64(0)
    for i in range(n):
        value = value * _BASE + hashes[i]
        if i:
            power = power * _BASE
    ngrams[0] = value
    for i in range(n, len(hashes)):
        value = (value - hashes[i - n] * power) * _BASE + hashes[i]
        ngrams[i - n + 1] = value
