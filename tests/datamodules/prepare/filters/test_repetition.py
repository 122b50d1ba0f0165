"""Repetition: the measures against datatrove's own functions, the limits by what they drop."""

from __future__ import annotations

from collections import Counter

import pytest
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates
from hypothesis import given
from hypothesis import strategies as st
from sample_texts import CHAPTER, ESSAY, PLAY, document

from datamodules.prepare.filters.characters import code_points_of, kinds_of
from datamodules.prepare.filters.layout import find_lines
from datamodules.prepare.filters.repetition import (
    NgramLimits,
    RepetitionFilter,
    repeated_ngram_share,
    repeated_share,
    top_ngram_share,
)
from datamodules.prepare.filters.words import words_of

few_words = st.lists(st.sampled_from(["one", "two", "six"]), min_size=1, max_size=60)


@given(few_words, st.integers(2, 6))
def test_repeated_ngrams_are_those_that_datatrove_counts(words: list[str], n: int) -> None:
    text = " ".join(words)
    expected = find_all_duplicate(words, n) / (3 * len(words))
    assert repeated_ngram_share(words_of(text), n) == pytest.approx(expected)


@given(few_words, st.integers(2, 4))
def test_the_top_ngram_is_the_most_frequent_run(words: list[str], n: int) -> None:
    runs = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(runs.values(), default=0)
    expected = min(1.0, most * n / len(words))
    assert top_ngram_share(words_of(" ".join(words)), n) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["a", "bcd", "中文"]), min_size=1, max_size=30))
def test_repeated_lines_are_those_that_datatrove_counts(lines: list[str]) -> None:
    code_points = code_points_of("\n".join(lines))
    found = repeated_share(find_lines(code_points, kinds_of(code_points)))
    assert found == pytest.approx(find_duplicates(lines)[1] / sum(map(len, lines)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PLAY + "Subscribe to our letter and never miss a play again!\n" * 10, "repeated lines"),
        (CHAPTER + ESSAY.split("\n\n")[0] + "\n\n" + (ESSAY.split("\n\n")[0] + "\n\n") * 3, "repeated lines"),
        ("哈哈哈哈" * 50, "one 3-character sequence too often"),
        ("buy now " * 60, "one 2-word sequence too often"),
        (
            "".join(
                f"第{n}条：本公司保留随时修改本条款的权利，恕不另行通知。" for n in "一二三四五六七八九十"
            ),
            "one 5-character sequence too often",
        ),
        (
            "\n".join(f"{n}. {line}" for n, line in enumerate(PLAY.splitlines() * 2) if len(line) > 30),
            "repeated 5-word sequences",
        ),
    ],
)
def test_what_repeats_itself_is_dropped(text: str, reason: str) -> None:
    assert RepetitionFilter().judge(document(text)) == reason


def test_repeated_paragraphs_are_found_where_their_lines_are_allowed() -> None:
    twice = ESSAY + "\n" + ESSAY
    assert RepetitionFilter(max_repeated_lines=1).judge(document(twice)) == "repeated paragraphs"


def test_limits_are_arguments() -> None:
    loose = NgramLimits({2: 1.0}, {5: 1.0})
    assert RepetitionFilter(1, 1, loose, loose).judge(document("buy now " * 60)) is None
    assert RepetitionFilter(words=NgramLimits({1: 0.01})).judge(document(PLAY)) is not None
