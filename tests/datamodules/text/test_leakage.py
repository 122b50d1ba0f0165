"""Word ids against leaks, on real text: how well the next character can be told from (character, clue).

The clue may be an id or the character before. What tells more than that character does, by a wide
margin, knows the future. It is estimated by counting: ids of the full context, the positive control,
are caught at once. (Causal ids may tell a little more where the past's longer beginnings of words do.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from datamodules.text import DualTokenizer
from datamodules.text.corpus import CorpusCounter
from datamodules.text.vocabulary import Ids
from datamodules.text.words import jieba_dictionary, word_lines

WIDE_MARGIN = 0.25
"""Bits a character."""

MOST_CHARACTERS = 250_000


def held_out_bits(char_ids: Ids, clue: Ids | None = None) -> float:
    """Bits of a next character in the second half of a text, given (character, clue).

    Counts from the first half; what is rarely seen is estimated from the character alone, then from nothing,
    each as much as there are different followers (Witten-Bell).
    """
    nothing = np.zeros_like(char_ids)
    contexts = [nothing, char_ids]
    if clue is not None:
        contexts.append(char_ids * (int(clue.max()) + 1) + clue)
    half, following, vocab_size = len(char_ids) // 2, char_ids[1:], int(char_ids.max()) + 1
    probability = np.full(len(following) - half, 1 / vocab_size)
    for context in contexts:
        keys = np.unique(context, return_inverse=True)[1][:-1]
        pairs = keys * vocab_size + following
        seen_pairs, counts = np.unique(pairs[:half], return_counts=True)
        place = np.minimum(np.searchsorted(seen_pairs, pairs[half:]), len(seen_pairs) - 1)
        times = np.where(seen_pairs[place] == pairs[half:], counts[place], 0)
        seen = np.bincount(keys[:half], minlength=keys.max() + 1)[keys[half:]]
        different = np.bincount(seen_pairs // vocab_size, minlength=keys.max() + 1)[keys[half:]]
        different = np.maximum(different, 1)
        probability = (times + different * probability) / (seen + different)
    return float(-np.log2(probability).mean())


def shuffled(lines: list[str]) -> str:
    random.Random(0).shuffle(lines)
    return "\n".join(lines)[:MOST_CHARACTERS]


def english() -> tuple[DualTokenizer, str]:
    """Python's own documentation, with the words of its first half."""
    text = shuffled("\n".join(topics.values()).split("\n"))
    counter = CorpusCounter(DualTokenizer(), count_runs=True)
    counter.add(text[: len(text) // 2])
    return DualTokenizer.from_files({"words": word_lines(counter.words(5_000))}), text


def chinese_phrases() -> tuple[DualTokenizer, str]:
    """The phrases and names of jieba's dictionary, with its words of up to three characters."""
    lines = jieba_dictionary().decode().split("\n")
    words = [line.split(" ")[0] for line in lines]
    short = [line for line, word in zip(lines, words, strict=True) if 0 < len(word) <= 3]
    phrases = shuffled([word for word in words if len(word) >= 4])
    return DualTokenizer.from_files({"words": "\n".join(short).encode()}), phrases


def chinese_prose() -> tuple[DualTokenizer, str]:
    """The Three Kingdoms (`onn fetch quickstart`), with jieba's words."""
    files = sorted(Path("data/quickstart/train/zh").glob("*.txt"))
    if not files:
        pytest.skip("needs the quickstart's data")
    return DualTokenizer(), shuffled("\n".join(file.read_text("utf-8") for file in files).split("\n"))


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path))
    yield


@pytest.mark.parametrize("read", [english, chinese_phrases, chinese_prose])
def test_only_ids_of_the_full_context_tell_of_the_future(
    read: Callable[[], tuple[DualTokenizer, str]],
) -> None:
    tokenizer, text = read()
    causal = tokenizer.encode(text)
    char_ids = causal.char_ids
    before = np.concatenate([[0], char_ids[:-1]])
    past = held_out_bits(char_ids, before)
    assert past < held_out_bits(char_ids) + 0.1  # the estimate uses a clue where there is one
    assert held_out_bits(char_ids, causal.full_context_word_ids()) < past - WIDE_MARGIN
    assert held_out_bits(char_ids, causal.word_ids) > past - WIDE_MARGIN
