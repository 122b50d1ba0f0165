"""Hashes: fixed for ever, of the whole sequence, evenly spread."""

from __future__ import annotations

import numpy as np

from datamodules.text.hashing import buckets_of, ngram_buckets

NOTHING = np.array([-1, -1])


def hashed(*texts: str, num_buckets: int) -> list[int]:
    codes = np.array([ord(character) for text in texts for character in text], dtype=np.uint32)
    return buckets_of(codes, np.cumsum([len(text) for text in texts]), num_buckets).tolist()


def test_hashes_are_those_that_tables_were_trained_with() -> None:
    assert hashed("a", "ab", "人工智能", num_buckets=2**16) == [8440, 41287, 59920]
    assert ngram_buckets(np.array([5, 6, 5]), NOTHING, 2**16).tolist() == [
        [54500, 48789],
        [64638, 42487],
        [52244, 46138],
    ]


def test_a_hash_is_of_the_characters_and_their_order() -> None:
    first, other, again, longer = hashed("ab", "ba", "ab", "aba", num_buckets=2**30)
    assert first == again
    assert len({first, other, longer}) == 3


def test_every_bucket_is_used_about_equally() -> None:
    words = [f"{number}x" for number in range(16_000)]
    counts = np.bincount(hashed(*words, num_buckets=16), minlength=16)
    assert counts.min() > 900 and counts.max() < 1100
    pairs = ngram_buckets(np.arange(16_000), NOTHING, 16)
    for column in pairs.T:
        counts = np.bincount(column, minlength=16)
        assert counts.min() > 850 and counts.max() < 1150


def test_the_last_two_and_three_characters_decide_and_nothing_else() -> None:
    one, other = np.array([9, 1, 2, 3]), np.array([8, 1, 2, 3])
    first, second = (ngram_buckets(char_ids, NOTHING, 2**30) for char_ids in (one, other))
    assert first[3].tolist() == second[3].tolist()
    assert first[2, 0] == second[2, 0] and first[2, 1] != second[2, 1]
    assert first[1, 0] != second[1, 0]


def test_a_text_read_in_pieces_has_the_buckets_of_the_whole() -> None:
    char_ids = np.arange(50) % 7
    whole = ngram_buckets(char_ids, NOTHING, 1000)
    for cut in (2, 3, 49):
        rest = ngram_buckets(char_ids[cut:], char_ids[cut - 2 : cut], 1000)
        assert np.array_equal(rest, whole[cut:])
    beginning = ngram_buckets(char_ids[1:], np.array([-1, char_ids[0]]), 1000)
    assert np.array_equal(beginning, whole[1:])
