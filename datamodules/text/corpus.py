"""What a tokenizer makes of a corpus, and the inventory and word list that the corpus itself suggests.

Notable:
- One pass, one document at a time; memory does not grow with the corpus.
- Words are those of the best segmentation of whole documents, so the dictionary decides what can be a Han
  word; runs of letters and digits are words by themselves. New Han words are not looked for.
- Only what stands in words counts where words are spoken of: letters, digits, Han; not spaces,
  punctuation and symbols.
- A run whose beginning alone is known is not a known word, though it has that word's id.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from datamodules.text.segmentation import is_letter
from datamodules.text.tokenizer import DualTokenizer
from datamodules.text.vocabulary import Ids
from datamodules.text.words import FOLD, most_frequent

_LETTERS = re.escape("".join(filter(is_letter, map(chr, range(0x2000)))))
RUN = re.compile(f"[{_LETTERS}]+(?:['\u2019][{_LETTERS}]+)*")
"""A run of letters and digits as the segmenter reads it, less an apostrophe at its end."""

ALWAYS = "\t\n\r" + "".join(map(chr, range(0x20, 0x7F)))
"""Characters of every inventory."""

_NUM_CODE_POINTS = 0x110000
_NEVER = ("Cc", "Cn", "Co", "Cs")  # control characters, and code points that are no characters


@dataclass(frozen=True)
class Tally:
    """Counts over some documents; they add up.

    Args:
        documents: how many.
        characters: of all of them.
        characters_in_bytes: those outside the inventory.
        tokens: what they became.
        words: occurrences of words, known or not: lone Han characters and runs of letters are words, too.
        known_words: of these, in the word list.
        word_characters: characters of all words.
        multi_characters: of these, in known words of several characters.
    """

    documents: int = 0
    characters: int = 0
    characters_in_bytes: int = 0
    tokens: int = 0
    words: int = 0
    known_words: int = 0
    word_characters: int = 0
    multi_characters: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def bytes_fallback(self) -> float:
        """Share of the characters that are spelled in bytes."""
        return self.characters_in_bytes / max(1, self.characters)

    @property
    def characters_per_token(self) -> float:
        """1 where no character is spelled in bytes."""
        return self.characters / max(1, self.tokens)

    @property
    def word_coverage(self) -> float:
        """Share of the word occurrences that are known words."""
        return self.known_words / max(1, self.words)

    @property
    def multi_character_share(self) -> float:
        """Share of the characters of words that stand in known words of several characters."""
        return self.multi_characters / max(1, self.word_characters)


class BoundedCounter:
    """Counts of many different things in bounded memory.

    When there are too many, the rarest are forgotten: the counts of those that stay are then too low by
    at most `error`, and nothing that occurred more often than that is missing.

    Args:
        limit: how many different ones are kept at most.

    Source: G. S. Manku, R. Motwani, Approximate Frequency Counts over Data Streams, 2002.
    """

    def __init__(self, limit: int = 4_000_000) -> None:
        self.counts: Counter[str] = Counter()
        self.error = 0
        self._limit = limit

    def update(self, things: Iterable[str]) -> None:
        """Count some more."""
        self.counts.update(things)
        while len(self.counts) > self._limit:
            rarest = min(self.counts.values())
            self.error += rarest
            self.counts = Counter({thing: n - rarest for thing, n in self.counts.items() if n > rarest})


class CorpusCounter:
    """Reads a corpus with a tokenizer, document by document.

    Args:
        tokenizer: whose inventory and words are counted.
        count_runs: keep the runs of letters too, for `words`.
    """

    def __init__(self, tokenizer: DualTokenizer, count_runs: bool = False) -> None:
        self.tokenizer = tokenizer
        self.total = Tally()
        self._count_runs = count_runs
        self._runs = BoundedCounter()
        self._characters = np.zeros(_NUM_CODE_POINTS, dtype=np.int64)
        segmenter, vocabulary = tokenizer.segmenter, tokenizer.vocabulary
        self._known_words = np.zeros(segmenter.num_known_words + 1, dtype=np.int64)
        self._word_lengths = segmenter.word_lengths()
        self._is_byte = vocabulary.is_byte
        self._in_words = np.array([len(token) == 1 and token.isalnum() for token in vocabulary.tokens])
        self._in_words[vocabulary.byte_ids[0x80:]] = True  # letters of scripts that are spelled in bytes

    def add(self, text: str) -> Tally:
        """Count one document.

        Returns:
            Its own counts; they are added to `total`.
        Raises:
            BadSampleError: if the text holds a lone surrogate.
        """
        encoding = self.tokenizer.encode(text)
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        self._characters += np.bincount(code_points, minlength=_NUM_CODE_POINTS)
        in_bytes = self._number_in_bytes(encoding.char_ids)

        table = encoding.table().full_context()
        firsts = table.firsts()
        lengths = np.diff(firsts, append=len(encoding))
        words, first_chars = table.word_ids[firsts], encoding.char_ids[firsts]
        listed = words < len(self._known_words)  # no bucket
        known = (words > 0) & listed & (self._word_lengths[np.where(listed, words, 0)] == lengths)
        self._known_words += np.bincount(words[known], minlength=len(self._known_words))
        if self._count_runs:
            self._runs.update(RUN.findall(text))

        lengths[self._is_byte[first_chars]] = 1  # characters now, no longer tokens
        is_word = self._in_words[first_chars]
        tally = Tally(
            documents=1,
            characters=len(code_points),
            characters_in_bytes=in_bytes,
            tokens=len(encoding),
            words=int(is_word.sum()),
            known_words=int((is_word & known).sum()),
            word_characters=int(lengths[is_word].sum()),
            multi_characters=int(lengths[is_word & known & (lengths > 1)].sum()),
        )
        self.total += tally
        return tally

    def _number_in_bytes(self, char_ids: Ids) -> int:
        spelled = char_ids[self._is_byte[char_ids]]
        continuation = np.isin(spelled, self.tokenizer.vocabulary.byte_ids[0x80:0xC0])
        return len(spelled) - int(continuation.sum())

    @property
    def distinct_characters(self) -> int:
        """Different characters of the corpus."""
        return int(np.count_nonzero(self._characters))

    @property
    def missing_characters(self) -> list[tuple[str, int]]:
        """Those outside the inventory, with their counts, the most frequent first."""
        vocabulary = self.tokenizer.vocabulary
        return [(c, n) for c, n in self._ranked(self._characters) if c not in vocabulary]

    def characters(self, limit: int) -> list[str]:
        """An inventory: ASCII and the most frequent characters of the corpus."""
        chosen = dict.fromkeys(ALWAYS)
        for character, _ in self._ranked(self._characters):
            if len(chosen) >= limit:
                break
            if unicodedata.category(character) not in _NEVER:
                chosen[character] = None
        return list(chosen)

    def number_outside(self, characters: Iterable[str]) -> int:
        """How many characters of the corpus are none of these."""
        return self.total.characters - int(self._characters[[ord(c) for c in characters]].sum())

    def words(self, limit: int, min_count: int = 1) -> list[tuple[str, int]]:
        """A word list: the words that occur at least so often, the most frequent first.

        Raises:
            RuntimeError: if runs were not counted.
        """
        if not self._count_runs:
            raise RuntimeError("count_runs was off: make the counter with count_runs=True")
        segmenter = self.tokenizer.segmenter
        counts: Counter[str] = Counter()
        for word_id in np.flatnonzero(self._known_words).tolist():
            word = segmenter.word(word_id)
            if not RUN.fullmatch(word):
                counts[word] = int(self._known_words[word_id])
        for run, count in self._runs.counts.items():
            counts[run.translate(FOLD)] += count
        return [entry for entry in most_frequent(counts, limit) if entry[1] >= min_count]

    @staticmethod
    def _ranked(counts: npt.NDArray[np.int64]) -> list[tuple[str, int]]:
        codes = np.flatnonzero(counts)
        ranked = codes[np.argsort(-counts[codes], kind="stable")]
        return [(chr(code), int(counts[code])) for code in ranked.tolist()]
