"""Words and n-grams against plain Python."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datamodules.prepare.filters.words import mix, ngram_hashes, words_of

PLAIN = re.compile(r"[中の]|[aBé1я]+(?:['’][aBé1я]+)*")
texts = st.text(alphabet="aBé1я中の'’ .，\n", max_size=40)


@given(texts)
def test_words_are_single_han_and_kana_and_runs_of_letters(text: str) -> None:
    expected = PLAIN.findall(text)
    words = words_of(text)
    assert words.lengths.tolist() == [len(word) for word in expected]
    assert words.num_lone == sum(word in "中の" for word in expected)


@given(texts, texts)
def test_hashes_are_equal_for_equal_words_only(one: str, other: str) -> None:
    expected = [re.sub("['’]", "", word.lower()) for word in PLAIN.findall(f"{one} {other}")]
    hashes = words_of(f"{one} {other}").hashes.tolist()
    for (a, x), (b, y) in combinations(zip(expected, hashes, strict=True), 2):
        assert (a == b) == (x == y)


@given(texts, st.integers(1, 6))
def test_ngrams_are_equal_for_equal_runs_of_words_only(text: str, n: int) -> None:
    words = words_of(text + text)
    hashes = ngram_hashes(words, n).tolist()
    runs = [tuple(words.hashes[i : i + n].tolist()) for i in range(len(words) - n + 1)]
    assert len(hashes) == len(runs)
    for (a, x), (b, y) in combinations(zip(runs, hashes, strict=True), 2):
        assert (a == b) == (x == y)


def test_case_width_and_apostrophes_make_no_difference() -> None:
    assert words_of("Don't ABC").hashes.tolist() == words_of("don’t ＡＢＣ").hashes.tolist()


def test_many_numbers_have_as_many_hashes() -> None:
    words = words_of(" ".join(map(str, range(200_000))))
    assert len(np.unique(words.hashes)) == len(words) == 200_000
    assert len(np.unique(mix(words.hashes) >> np.uint64(20))) == 200_000
