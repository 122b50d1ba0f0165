"""`WordList`: the words that the segmenter knows, with their counts.

Notable:
- jieba's dictionary is the default. Its `dict.txt` is read as data; jieba itself never runs.
- Files are in jieba's format, `word count [tag]` a line. In user words the count may be left out:
  the word then gets the smallest count with which it wins over its own parts (jieba's rule).
- Words are ordered by count, so that a word's id is its rank and `max_words` cuts the tail.
- Case is folded character by character; char ids keep the case, words need not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_FOLDED_CODE_POINTS = 0x2000
FOLD = {
    code: ord(lowered)
    for code in range(_FOLDED_CODE_POINTS)
    if len(lowered := chr(code).lower()) == 1 and lowered != chr(code)
} | {0x2019: ord("'")}
"""Code point -> the one that words have in its place: small letters for capitals, ' for its curly form."""
_FOLDABLE = re.compile(f"[{''.join(map(chr, FOLD))}]")


@dataclass(frozen=True)
class WordList:
    """Words and their counts, most frequent first (ties by code point).

    Args:
        words: distinct, case-folded.
        counts: positive, one a word.
        cut: words of several characters beyond `max_words`, in the same order: known to the segmenter,
            without an id of their own.
        cut_counts: positive, one a cut word.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    cut: tuple[str, ...] = ()
    cut_counts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def read(
        cls,
        base: bytes,
        user: bytes = b"",
        max_words: int | None = None,
        keep_cut: bool = False,
        sources: tuple[str, str] = ("the word list", "the user words"),
    ) -> WordList:
        """Parse a word file and merge user words into it.

        Args:
            base: `word count [tag]` lines, UTF-8.
            user: the same, counts optional; an entry here replaces the one in `base`, and a count of
                0 removes it.
            max_words: keep this many, user words first, then the most frequent.
            keep_cut: return the others as `cut` instead of forgetting them.
            sources: what to call the two files in errors.
        Raises:
            ValueError: if a line cannot be read (file and line named), or no word is left.
        """
        counts: dict[str, int] = {}
        for word, count in _lines(base, sources[0]):
            if count is None:
                raise ValueError(f"{sources[0]}: '{word}' has no count, a line must be 'word count [tag]'")
            counts[word] = counts.get(word, 0) + count
        own = dict(_lines(user, sources[1]))
        total = max(1, sum(counts.values()))
        for word, count in own.items():
            counts[word] = _winning_count(word, counts, total) if count is None else count
        ranked = sorted(word for word, count in counts.items() if count > 0)
        ranked.sort(key=counts.__getitem__, reverse=True)  # stable: by count, then by code point
        if not ranked:
            raise ValueError(f"{sources[0]} holds no word: give a file of 'word count [tag]' lines")
        first_own = sorted(ranked, key=lambda word: word not in own)
        kept = set(first_own[:max_words])
        listed = tuple(word for word in ranked if word in kept)
        cut = tuple(word for word in ranked if word not in kept and len(word) > 1) if keep_cut else ()
        return cls(listed, tuple(map(counts.__getitem__, listed)), cut, tuple(map(counts.__getitem__, cut)))


def most_frequent(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """The words with the highest counts, by falling count, then by code point."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:limit]


def word_lines(counts: Iterable[tuple[str, int]]) -> bytes:
    """A word file: `word count` lines, which `WordList.read` reads back."""
    return "".join(f"{word} {count}\n" for word, count in counts).encode()


def jieba_dictionary() -> bytes:
    """jieba's `dict.txt`.

    Raises:
        FileNotFoundError: if jieba is not installed.
    """
    spec = find_spec("jieba")  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the default word list is jieba's: `pip install jieba`, or give `words`")
    return (Path(spec.submodule_search_locations[0]) / "dict.txt").read_bytes()


def _lines(content: bytes, source: str) -> Iterator[tuple[str, int | None]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    # Not splitlines() or split(): they also split at NEL, VT and FS, which may stand in a word.
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.replace("\t", " ").strip("\r ").split(" ")
        if not fields[0]:
            continue
        word = fields[0].translate(FOLD) if _FOLDABLE.search(fields[0]) else fields[0]
        if len(fields) == 1 or (len(fields) == 2 and not fields[1].lstrip("-").isdecimal()):
            yield word, None
            continue
        try:
            count = int(fields[1])
        except ValueError:
            count = -1
        if count < 0 or len(fields) > 3:
            raise ValueError(f"{source}, line {number}: {line.strip()!r} is not 'word count [tag]'")
        yield word, count


def _winning_count(word: str, counts: dict[str, int], total: int) -> int:
    """Smallest count with which `word` beats its best segmentation into other words."""
    best = [0.0] + [-math.inf] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            part = word[start:end]
            known = counts.get(part, 0) if end - start < len(word) else 0
            if known or end - start == 1:
                best[end] = max(best[end], best[start] + math.log(max(known, 1) / total))
    return max(counts.get(word, 1), int(math.exp(best[-1]) * total) + 1)
