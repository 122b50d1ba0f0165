"""Which row each row of a larger tokenizer's tables continues: by string, with as little change as can be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from datamodules.text import DualTokenizer
from datamodules.text.table_rows import bucket_origins, feature_origins
from datamodules.text.vocabulary import CharacterVocabulary

Make = Callable[..., DualTokenizer]
SMALL_WORDS = "ab 40\nabc 9\nbc 30\nd 7\ndon 2\ndon't 5\n12 3\n"
SMALL_WORDS += "人 90\n人工 30\n人工智能 20\n工 9\n智 4\n能 60\n"
OLD_CHARACTERS = "\n abcd'nto123人工智能，"
MORE_WORDS = SMALL_WORDS.replace("人工智能 20\n", "") + "人工智能 21\n工人 30\nbct 8\ncab 99\n"


def tables_agree(previous: DualTokenizer, new: DualTokenizer, text: str) -> np.ndarray:
    """[n, 3] whether each id of the new encoding continues the previous one's row."""
    origins, before, now = feature_origins(previous, new), previous.encode(text), new.encode(text)
    return np.stack(
        [
            origins["character"][now.char_ids] == before.char_ids,
            origins["word"][now.word_ids] == before.word_ids,
            origins["previous_word"][now.previous_word_ids] == before.previous_word_ids,
        ],
        axis=1,
    )


def test_rows_are_matched_by_what_they_stand_for_and_not_by_number(small_tokenizer: Make) -> None:
    previous = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS)
    new = small_tokenizer(MORE_WORDS, characters=OLD_CHARACTERS + "xyz！")
    origins = feature_origins(previous, new)
    for index, token in enumerate(new.vocabulary.tokens):
        origin = origins["character"][index]
        assert (origin < 0) == (token not in previous.vocabulary.tokens)
        assert origin < 0 or previous.vocabulary.tokens[origin] == token
    known = {
        previous.segmenter.word(number): number for number in range(1, previous.segmenter.num_known_words + 1)
    }
    for number in range(1, new.segmenter.num_known_words + 1):
        word = new.segmenter.word(number)
        if word in known:
            assert origins["word"][number] == origins["previous_word"][number] == known[word]
    assert [len(rows) for rows in origins.values()] == [new.vocab_size, new.num_words, new.word_vocab_size]
    assert origins["word"][0] == origins["previous_word"][0] == 0


@pytest.mark.parametrize("text", ["ab，人工智能 don't", "智能人工", "12 b 3，，", "", "\x07é"])
def test_texts_without_anything_new_continue_the_very_same_rows(small_tokenizer: Make, text: str) -> None:
    previous = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS)
    new = small_tokenizer(MORE_WORDS, characters=OLD_CHARACTERS + "xyz")
    assert tables_agree(previous, new, text).all()


def test_a_new_word_continues_what_was_seen_in_its_place(small_tokenizer: Make) -> None:
    previous = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS)
    new = small_tokenizer(MORE_WORDS, characters=OLD_CHARACTERS)
    origins = feature_origins(previous, new)
    for word in ("工人", "bct", "cab"):
        (number,) = {i for i in range(1, new.num_words) if new.segmenter.word(i) == word}
        before = previous.encode(word + "\n")
        assert origins["word"][number] == before.word_ids[len(word) - 1], word
        assert origins["previous_word"][number] == before.previous_word_ids[len(word)], word
    # a text of a new word: only the word before it is another (before, a part of it was)
    assert tables_agree(previous, new, "工人，")[:, :2].all()


def test_a_new_character_continues_its_last_byte_where_it_is_the_word_before(small_tokenizer: Make) -> None:
    previous = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS)
    new = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS + "！")
    row = feature_origins(previous, new)["previous_word"][new.num_words + new.vocabulary.tokens.index("！")]
    assert row == previous.encode("！，").previous_word_ids[-1]


@pytest.mark.parametrize(("buckets", "new_buckets"), [(8, 8), (8, 24), (0, 0)])
def test_buckets_continue_those_of_the_same_hash(
    small_tokenizer: Make, buckets: int, new_buckets: int
) -> None:
    previous = small_tokenizer(SMALL_WORDS, max_words=6, hashed_words=buckets)
    new = small_tokenizer(SMALL_WORDS, max_words=9 if buckets else 6, hashed_words=new_buckets)
    assert tables_agree(previous, new, "xyz 人工智能 unseen abc words，能 don't").all()


@pytest.mark.parametrize(("previous", "new"), [(8, 12), (8, 0), (0, 8), (8, 4)])
def test_hashes_that_would_move_are_refused(previous: int, new: int) -> None:
    with pytest.raises(ValueError, match=f"hashed_words cannot go from {previous} to {new}"):
        bucket_origins(previous, new, "hashed_words")


def test_what_is_missing_is_named(small_tokenizer: Make) -> None:
    previous = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS)
    without_don = small_tokenizer(SMALL_WORDS.replace("don 2\n", ""), characters=OLD_CHARACTERS)
    with pytest.raises(ValueError, match=r"lacks 1 words of .* \('don'\): tables only grow"):
        feature_origins(previous, without_don)
    with pytest.raises(ValueError, match=r"vocabulary lacks 1 characters .*'，'"):
        feature_origins(previous, small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS.replace("，", "")))


def test_ngram_tables_need_the_previous_ids_and_continue_their_buckets(
    tmp_path, small_tokenizer: Make
) -> None:
    previous = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS)
    sorted_in = small_tokenizer(SMALL_WORDS, characters=OLD_CHARACTERS + "!")
    with pytest.raises(ValueError, match="would no longer have the id"):
        feature_origins(previous, sorted_in, 32, 32)
    appended = CharacterVocabulary([*previous.vocabulary.tokens, "!"]).to_json()
    behind = DualTokenizer.from_files({"words": SMALL_WORDS.encode(), "vocabulary": appended})
    origins = feature_origins(previous, behind, 32, 64)
    assert origins["bigram"].tolist() == origins["trigram"].tolist() == [*range(32), *range(32)]
