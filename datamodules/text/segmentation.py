"""`Segmenter`: char ids in, word ids out - causal, previous and full-context from one forward table.

Notable:
- The causal word id at a token is the last word of the most probable segmentation of the text up to
  there (see `forward`); no later character can change it.
- Full-context ids come from tracing the SAME table back from the end, so both ids are equal at the
  last character of every word.
- Word ids: 0 a lone character, 1..W a word by its rank, then buckets (none by default): a word cut by
  `max_words`, or a run of letters so far that is no known word, has the bucket of its hash.
- Previous-word ids: 0 nothing before, word ids as above, `num_words`+c the lone character of char id c
  (of a character in bytes: its last byte).
- Words with a character outside the vocabulary are left out; the others keep their order.
- Trie and words are kept in the user's cache folder, so a later start neither parses nor builds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamodules.text import forward
from datamodules.text.cache import Arrays, cached_arrays
from datamodules.text.hashing import buckets_of
from datamodules.text.trie import BASE, COST, NO_WORD_COST, ROOT, WORD, Cells, Checks, build_trie
from datamodules.text.vocabulary import CharacterVocabulary, Ids
from datamodules.text.words import FOLD, WordList

RULES_VERSION = 1
"""Raise it whenever the same text and words would get other ids."""

_LAYOUT_VERSION = 3  # of the cached arrays
_COST_STEPS = 2**24
_APOSTROPHES = "'\u2019"
_NUM_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class ForwardTable:
    """One row a token: the last word of the best segmentation of the text up to and including it.

    Args:
        word_ids: [n] int64, that word.
        previous_word_ids: [n] int64, the word before it.
        starts: [n] int64, index of its first token.
    """

    word_ids: Ids
    previous_word_ids: Ids
    starts: Ids

    def full_context(self) -> ForwardTable:
        """The best segmentation of the whole text: every token with the row of its word's last one."""
        return ForwardTable(*map(self._traced_back, (self.word_ids, self.previous_word_ids, self.starts)))

    def full_context_word_ids(self) -> Ids:
        """The word ids of `full_context` alone."""
        return self._traced_back(self.word_ids)

    def firsts(self) -> Ids:
        """Index of the first token of every word, of a full-context table."""
        return np.flatnonzero(np.diff(self.starts, prepend=-1))

    def _traced_back(self, column: Ids) -> Ids:
        full = np.empty_like(column)
        forward.trace_back(column, self.starts, full)
        return full


class Segmenter:
    """Words over the characters of one vocabulary.

    Args:
        vocabulary: whose char ids are read.
        read_words: gives the word list; called only if the cache does not have what it leads to.
        words_fingerprint: digest of everything that `read_words` depends on.
        hashed_words: number of buckets.
    """

    def __init__(
        self,
        vocabulary: CharacterVocabulary,
        read_words: Callable[[], WordList],
        words_fingerprint: str,
        hashed_words: int = 0,
    ) -> None:
        name = f"words-{_LAYOUT_VERSION}-{RULES_VERSION}-{vocabulary.fingerprint}-{words_fingerprint}"
        arrays = cached_arrays(name, lambda: _build(vocabulary, read_words(), hashed_words))
        self._words: forward.Words = (
            arrays["checks"],
            arrays["cells"],
            arrays["characters"],
            arrays["folded"],
            arrays["settings"],
        )
        self._texts, self._text_ends = arrays["texts"], arrays["text_ends"]
        self._longest = int(arrays["longest"])
        self.vocab_size = len(vocabulary)
        self.num_known_words = len(self._text_ends)
        """Word ids from 1 to this are words, those above are buckets."""
        self.num_words = 1 + self.num_known_words + hashed_words
        """Word ids are below this: the lone character, every word, every bucket."""
        self.word_vocab_size = self.num_words + self.vocab_size
        """Previous-word ids are below this."""

    def word(self, word_id: int) -> str:
        """The (case-folded) word of an id in 1..num_known_words.

        Raises:
            ValueError: if there is no such word.
        """
        if not 0 < word_id <= self.num_known_words:
            raise ValueError(f"word id {word_id} is not in 1..{self.num_known_words}")
        start = int(self._text_ends[word_id - 2]) if word_id > 1 else 0
        return self._texts[start : int(self._text_ends[word_id - 1])].tobytes().decode()

    def word_lengths(self) -> Ids:
        """[num_known_words + 1] characters of each word; of the lone character 0."""
        begins_character = (self._texts & 0xC0) != 0x80
        begins_word = np.concatenate([[0], self._text_ends[:-1]])
        return np.concatenate([[0], np.add.reduceat(begins_character, begins_word, dtype=np.int64)])

    def table(self, char_ids: Ids) -> ForwardTable:
        """The forward table of a whole text.

        Args:
            char_ids: [n] int64, all within the vocabulary.
        """
        return self.stream().advance(char_ids)

    def stream(self) -> ForwardStream:
        """A table that is built bit by bit, from the beginning of a text."""
        return ForwardStream(self._words, self._longest)


class ForwardStream:
    """State of one forward table: all that must be known of a prefix to go on.

    Made by `Segmenter.stream`; its size is that of the longest word.
    """

    def __init__(self, words: forward.Words, longest: int) -> None:
        self._words = words
        self._state: forward.State = (
            np.zeros(forward.NUM_REGISTERS, dtype=np.int64),
            np.zeros((longest + 1, 4), dtype=np.int64),
            np.empty(forward.SCRATCH_SHAPE, dtype=np.int32),
        )

    def advance(self, char_ids: Ids) -> ForwardTable:
        """Read further tokens.

        Args:
            char_ids: [n] int64, all within the vocabulary.
        Returns:
            Their rows of the table.
        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        char_ids = np.ascontiguousarray(char_ids, dtype=np.int64)  # one compiled version is enough
        vocab_size = len(self._words[2])
        if len(char_ids) and char_ids.view(np.uint64).max() >= vocab_size:  # negative ones are huge
            raise ValueError(
                f"char ids {char_ids.min()}..{char_ids.max()} are not all in 0..{vocab_size - 1}: they "
                "were made with another vocabulary"
            )
        n = len(char_ids)
        rows: forward.Rows = (np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64))
        forward.advance(self._words, self._state, char_ids, rows)
        return ForwardTable(*rows)


def _build(vocabulary: CharacterVocabulary, word_list: WordList, hashed_words: int) -> Arrays:
    """Everything a segmenter needs, as arrays."""
    every_word = (*word_list.words, *word_list.cut)
    lengths = np.fromiter(map(len, every_word), dtype=np.int64, count=len(every_word))
    code_points = np.frombuffer("".join(every_word).encode("utf-32-le"), dtype=np.uint32)
    symbols, symbol_of_code_point = _symbols(vocabulary, code_points)

    starts = np.cumsum(lengths) - lengths
    known = np.minimum.reduceat(symbol_of_code_point[code_points], starts) > 0
    words = [word for word, is_known in zip(every_word, known, strict=True) if is_known]
    texts = [word.encode() for word in words[: np.count_nonzero(known[: len(word_list)])]]
    if not texts:
        raise ValueError("no word of the word list can be spelled with the vocabulary's characters")
    lengths = lengths[known]
    counts = np.array((*word_list.counts, *word_list.cut_counts), dtype=np.float64)[known]
    log_total = math.log(counts.sum())
    floor = round(log_total * _COST_STEPS)
    if 3 * floor >= NO_WORD_COST:
        raise ValueError(f"the words' counts add up to {counts.sum():.1e}, the most is 1e18: divide them")
    costs = np.rint((log_total - np.log(counts)) * _COST_STEPS).astype(np.int32)
    ids = np.arange(1, len(words) + 1)
    if hashed_words:
        cut = np.frombuffer("".join(words[len(texts) :]).encode("utf-32-le"), dtype=np.uint32)
        buckets = buckets_of(cut, np.cumsum(lengths[len(texts) :]), hashed_words)
        ids[len(texts) :] = 1 + len(texts) + buckets

    by_text = np.array(sorted(range(len(words)), key=words.__getitem__), dtype=np.int64)
    spelled = np.frombuffer("".join([words[i] for i in by_text]).encode("utf-32-le"), dtype=np.uint32)
    checks, cells = build_trie(
        symbol_of_code_point[spelled],
        np.concatenate([[0], np.cumsum(lengths[by_text])]),
        ids[by_text].astype(np.int32),
        costs[by_text],
        int(symbols.max()) + 1,
    )
    settings = np.zeros(forward.NUM_SETTINGS, dtype=np.int64)
    settings[forward.FLOOR], settings[forward.NUM_BUCKETS] = floor, hashed_words
    settings[forward.FIRST_BUCKET] = 1 + len(texts)
    settings[forward.FIRST_LONE] = 1 + len(texts) + hashed_words
    return {
        "checks": checks,
        "cells": cells,
        "characters": _characters(vocabulary, symbols, checks, cells, floor),
        "folded": _folded(vocabulary),
        "settings": settings,
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "text_ends": np.cumsum([len(text) for text in texts]),
        "longest": lengths.max(),
    }


def _characters(
    vocabulary: CharacterVocabulary, symbols: npt.NDArray[np.int32], checks: Checks, cells: Cells, floor: int
) -> Cells:
    """[vocab_size, 4] what each char id is to the segmenter, and what the trie says of it alone."""
    alone = cells[np.where(checks[ROOT + symbols] == symbols, ROOT + symbols, 0)]
    characters = np.empty((len(vocabulary), 4), dtype=np.int32)
    characters[:, forward.TRAITS] = symbols + (_kinds(vocabulary).astype(np.int32) << forward.KIND_SHIFT)
    characters[:, forward.ALONE_BASE] = alone[:, BASE]
    characters[:, forward.ALONE_WORD] = alone[:, WORD]
    characters[:, forward.ALONE_COST] = np.where(alone[:, WORD] > 0, alone[:, COST], floor)
    return characters


def _folded(vocabulary: CharacterVocabulary) -> npt.NDArray[np.int32]:
    """[vocab_size] code point that words have for a character, 0 for other tokens."""
    codes = [ord(token) if len(token) == 1 else 0 for token in vocabulary.tokens]
    return np.array([FOLD.get(code, code) for code in codes], dtype=np.int32)


def _symbols(
    vocabulary: CharacterVocabulary, code_points: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Number the characters that words use, the most frequent first.

    Returns:
        Symbol of every char id (capitals share that of the small letter), and of every code point that
        words (already folded) may use; 0: none.
    """
    folded = np.arange(_NUM_CODE_POINTS)
    folded[list(FOLD)] = list(FOLD.values())
    is_character = np.array([len(token) == 1 for token in vocabulary.tokens])
    characters = folded[[ord(token) for token in vocabulary.tokens if len(token) == 1]]

    frequencies = np.bincount(code_points, minlength=_NUM_CODE_POINTS)
    ranked = np.unique(characters)
    ranked = ranked[np.argsort(-frequencies[ranked], kind="stable")]
    ranked = ranked[frequencies[ranked] > 0]
    symbol_of_code_point = np.zeros(_NUM_CODE_POINTS, dtype=np.int32)
    symbol_of_code_point[ranked] = np.arange(1, len(ranked) + 1)
    symbols = np.zeros(len(vocabulary), dtype=np.int32)
    symbols[is_character] = symbol_of_code_point[characters]
    return symbols, symbol_of_code_point


def _kinds(vocabulary: CharacterVocabulary) -> npt.NDArray[np.uint8]:
    """[vocab_size] what each char id is to the segmenter."""
    kinds = np.full(len(vocabulary), forward.OTHER, dtype=np.uint8)
    for index, token in enumerate(vocabulary.tokens):
        if len(token) == 1 and is_letter(token):
            kinds[index] = forward.LETTER
        elif len(token) == 1 and token in _APOSTROPHES:
            kinds[index] = forward.APOSTROPHE
    kinds[vocabulary.byte_ids[0x80:0xC0]] = forward.CONTINUATION_BYTE
    kinds[vocabulary.byte_ids[0xC0:]] = forward.LEAD_BYTE
    return kinds


def is_letter(character: str) -> bool:
    """Whether a character makes runs: ASCII letters and digits, Latin, Greek, Cyrillic and their marks."""
    if character.isascii():
        return character.isalnum()
    return (
        "\u00c0" <= character <= "\u052f" and (character.isalpha() or "\u0300" <= character <= "\u036f")
    ) or ("\u1e00" <= character <= "\u1fff" and character.isalpha())
