"""Word lists: jieba's format, user words, ranks."""

from __future__ import annotations

import pytest

from datamodules.text.words import WordList, jieba_dictionary


def test_words_are_ranked_by_count_then_code_point() -> None:
    words = WordList.read("甲 5 n\n丙 7\n乙 5\n".encode())
    assert words.words == ("丙", "乙", "甲")
    assert words.counts == (7, 5, 5)


def test_case_and_curly_apostrophes_are_folded_and_counts_added() -> None:
    words = WordList.read("Don’t 3\ndon't 4\nİ 2\n".encode())
    assert dict(zip(words.words, words.counts, strict=True)) == {"don't": 7, "İ": 2}


def test_user_words_replace_add_and_remove() -> None:
    words = WordList.read("甲 5\n乙 4\n丙 3\n".encode(), "乙 9 n\n丙 0\n丁 1\n".encode())
    assert dict(zip(words.words, words.counts, strict=True)) == {"乙": 9, "甲": 5, "丁": 1}


def test_max_words_cuts_the_tail_but_no_user_word() -> None:
    words = WordList.read("甲 5\n乙 4\n丙 3\n".encode(), "丁 1\n".encode(), max_words=3)
    assert words.words == ("甲", "乙", "丁")


@pytest.mark.parametrize("line", ["甲乙", "甲乙 n"])
def test_a_user_word_without_count_wins_over_its_parts(small_tokenizer, line: str) -> None:
    base = "甲 500\n乙 400\n丙 30\n"
    assert small_tokenizer(base).segment("丙甲乙丙") == ["丙", "甲", "乙", "丙"]
    assert small_tokenizer(base, user_words=line).segment("丙甲乙丙") == ["丙", "甲乙", "丙"]


def test_lines_are_split_at_newlines_only() -> None:
    words = WordList.read("\ufeff甲 5\r\n\n乙\x85\x0b丁\t4 n\n".encode())
    assert words.words == ("甲", "乙\x85\x0b丁")


@pytest.mark.parametrize(
    ("base", "user", "message"),
    [
        (b"ab x y\n", b"", "word list, line 1"),
        (b"ab 3\ncd -3\n", b"", "line 2"),
        (b"ab\n", b"", "no count"),
        (b"", b"", "holds no word"),
        (b"ab 1\xff\n", b"", "not UTF-8"),
        (b"ab 1\n", b"c 1 n n\n", "user words, line 1"),
    ],
)
def test_a_bad_line_is_named(base: bytes, user: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordList.read(base, user)


def test_the_default_words_are_jieba_s() -> None:
    words = WordList.read(jieba_dictionary())
    assert len(words) > 349_000
    assert words.words[:3] == ("了", "是", "在")
