"""Five bytes a token hold exactly what the tokenizer says, wherever reading begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.prepared import PackingError, TokenLayout
from datamodules.prepared.layout import PackedTokens
from datamodules.text import DualTokenizer
from datamodules.text.tokenizer import Encoding
from datamodules.text.vocabulary import CharacterVocabulary

PIECES = st.one_of(
    st.text(alphabet="天下大势分久必合人工智能机器学习的了，。", max_size=30),
    st.text(alphabet="abcdetinosr' ’-AN1é.", max_size=30),
    st.text(max_size=10),
    st.sampled_from(
        ["🦜🦜", "𠀀𪚥", "counterrevolutionaries", "知其然而不知其所以然", "\x00\x85\r\n", "T恤AA制"]
    ),
    st.builds(lambda letter, length: letter * length, st.sampled_from("aé1"), st.integers(300, 700)),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)
MOST_WORDS = 1 << 21


def encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def joined(packed: list[PackedTokens]) -> PackedTokens:
    columns = ("char", "word_low", "word_high")
    return PackedTokens(*(np.concatenate([getattr(text, name) for text in packed]) for name in columns))


def columns_of(encoding: Encoding) -> list[np.ndarray]:
    return [encoding.char_ids, encoding.word_ids, encoding.previous_word_ids]


def assert_equal(encoding: Encoding, expected: list[np.ndarray]) -> None:
    for column, wanted in zip(columns_of(encoding), expected, strict=True):
        assert column.dtype == np.int64
        np.testing.assert_array_equal(column, wanted)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), data=st.data())
@settings(max_examples=150)
def test_texts_and_windows_of_them_unpack_to_what_the_tokenizer_gave(
    tokenizer: DualTokenizer, layout: TokenLayout, texts: list[str], data: st.DataObject
) -> None:
    encodings = [tokenizer.encode(encodable(text)) for text in texts]
    tokens = joined([layout.pack(encoding) for encoding in encodings])
    expected = [np.concatenate(column) for column in zip(*map(columns_of, encodings), strict=True)]
    assert_equal(layout.unpack(tokens, 0, len(tokens)), expected)
    for _ in range(5):
        start = data.draw(st.integers(0, len(tokens)))
        stop = data.draw(st.integers(start, len(tokens)))
        assert_equal(layout.unpack(tokens, start, stop), [column[start:stop] for column in expected])


@given(texts=st.lists(st.text(alphabet="人工智能a'é1 。🦜", max_size=60), min_size=1), data=st.data())
@settings(max_examples=100)
def test_with_the_most_words_that_fit_three_bits_still_bridge_any_run(
    tokenizer: DualTokenizer, texts: list[str], data: st.DataObject
) -> None:
    layout = TokenLayout(tokenizer.vocab_size, MOST_WORDS)
    encodings = []
    for text in texts:
        encoding = tokenizer.encode(text)
        previous = encoding.previous_word_ids
        moved = np.where(
            previous >= tokenizer.num_words, previous + MOST_WORDS - tokenizer.num_words, previous
        )
        encodings.append(dataclasses.replace(encoding, previous_word_ids=moved))
    tokens = joined([layout.pack(encoding) for encoding in encodings])
    expected = [np.concatenate(column) for column in zip(*map(columns_of, encodings), strict=True)]
    start = data.draw(st.integers(0, len(tokens)))
    assert_equal(layout.unpack(tokens, start, len(tokens)), [column[start:] for column in expected])


def test_hashed_words_are_packed_like_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path))
    words = "人工 30\nab 40\nabc 9\n智能 20\n".encode()
    tokenizer = DualTokenizer.from_files({"words": words}, max_words=2, hashed_words=100_000)
    layout = TokenLayout.of(tokenizer)
    encoding = tokenizer.encode("人工智能 abcdefgh ab " + "q" * 400 + "智能 zz zzz, ab")
    assert encoding.word_ids.max() >= 3  # buckets are in use
    tokens = layout.pack(encoding)
    for start in (0, 3, 7, 15, 300, 430):
        expected = [column[start:] for column in columns_of(encoding)]
        assert_equal(layout.unpack(tokens, start, len(tokens)), expected)


def test_a_window_into_a_run_of_thousands_of_letters_knows_the_word_before_it(
    tokenizer: DualTokenizer, layout: TokenLayout
) -> None:
    encoding = tokenizer.encode("人工智能" + "z" * 5000 + " ok")
    tokens = layout.pack(encoding)
    for start in (4, 5, 33, 34, 35, 4000, 5003, 5004):
        expected = [column[start:] for column in columns_of(encoding)]
        assert_equal(layout.unpack(tokens, start, len(tokens)), expected)


def test_a_document_begins_with_nothing_before_it_even_in_the_middle_of_a_stream(
    tokenizer: DualTokenizer, layout: TokenLayout
) -> None:
    first, second = tokenizer.encode("人工智能"), tokenizer.encode("abc学习")
    tokens = joined([layout.pack(first), layout.pack(second)])
    assert layout.unpack(tokens, 4, 7).previous_word_ids.tolist() == [0, 0, 0]


def test_a_listed_word_that_no_code_reaches_is_refused_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path))
    word = "".join(chr(0x4E00 + number) for number in range(300))
    vocabulary = CharacterVocabulary.from_characters(word + "，").to_json()
    tokenizer = DualTokenizer.from_files({"vocabulary": vocabulary, "words": f"{word} 50\n一 9\n".encode()})
    layout = TokenLayout.of(tokenizer)
    assert layout.longest_word == 254
    with pytest.raises(PackingError, match=r"listed word of more than 254 characters.*off the word list"):
        layout.pack(tokenizer.encode("丁，" + word))
    unfinished = tokenizer.encode("丁，" + word[:-1])
    assert_equal(layout.unpack(layout.pack(unfinished), 0, len(unfinished)), columns_of(unfinished))


def test_full_context_ids_can_be_packed_as_well(tokenizer: DualTokenizer, layout: TokenLayout) -> None:
    encoding = tokenizer.encode("机器学习 and 人工智能 in counterrevolutionary times", full_context=True)
    assert_equal(layout.unpack(layout.pack(encoding), 0, len(encoding)), columns_of(encoding))


def test_ids_that_cannot_be_given_back_are_refused(tokenizer: DualTokenizer, layout: TokenLayout) -> None:
    encoding = tokenizer.encode("人工智能 and 机器学习")
    with pytest.raises(PackingError, match="keeps its `starts`"):
        layout.pack(dataclasses.replace(encoding, starts=None))
    for column in ("char_ids", "word_ids", "previous_word_ids", "starts"):
        for wrong in (-1, 1 << 22):
            changed = getattr(encoding, column).copy()
            changed[5] = wrong
            with pytest.raises(PackingError, match="token 5 "):
                layout.pack(dataclasses.replace(encoding, **{column: changed}))
    with pytest.raises(PackingError, match="another tokenizer"):
        TokenLayout(300, 10).pack(encoding)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((65_537, 10), "at most 65,536 char ids, the tokenizer has 65,537: use a smaller inventory"),
        ((300, MOST_WORDS + 1), "at most 2,097,152 word ids, .* set its `max_words` to 2,097,151"),
    ],
)
def test_a_tokenizer_too_large_for_five_bytes_is_refused(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenLayout(*sizes)


def test_the_largest_char_id_and_word_id_keep_all_their_bits() -> None:
    layout = TokenLayout(65_536, MOST_WORDS)
    ids = np.array([65_535, 0, 65_535], np.int64)
    words = np.array([MOST_WORDS - 1, 0, 1 << 16], np.int64)
    previous = np.array([0, MOST_WORDS - 1, MOST_WORDS], np.int64)
    encoding = Encoding(ids, words, previous, starts=np.arange(3))
    assert_equal(layout.unpack(layout.pack(encoding), 0, 3), [ids, words, previous])
