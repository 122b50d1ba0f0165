"""The tokenizer as a whole: lossless, the same as a stream, clear about bad input, flat in memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.text import DualTokenizer
from onn_lightning.modality import BadSampleError

any_mix = st.text(max_size=30) | st.text(alphabet="ab'’ 12人工智能大学生\0\x85é𠮷🙂\U00012345\n", max_size=30)


@settings(max_examples=200, deadline=None)
@given(text=any_mix, full_context=st.booleans())
def test_every_string_comes_back_and_has_one_word_id_a_character(
    tokenizer: DualTokenizer, text: str, full_context: bool
) -> None:
    encoding = tokenizer.encode(text, full_context=full_context)
    assert tokenizer.decode(encoding.char_ids) == text
    assert (
        len(encoding.char_ids) == len(encoding.word_ids) == len(encoding.previous_word_ids) == len(encoding)
    )
    assert {column.dtype for column in vars(encoding).values()} == {np.dtype(np.int64)}
    if text:
        assert encoding.char_ids.max() < tokenizer.vocab_size
        assert encoding.word_ids.min() >= 0 and encoding.word_ids.max() < tokenizer.num_words
        assert encoding.previous_word_ids.max() < tokenizer.word_vocab_size
        assert encoding.previous_word_ids[0] == 0
    assert "".join(tokenizer.segment(text)) == text


@settings(max_examples=200, deadline=None)
@given(prefix=any_mix, text=any_mix)
def test_a_stream_gives_the_ids_of_the_whole_text_at_every_step(
    tokenizer: DualTokenizer, prefix: str, text: str
) -> None:
    whole = tokenizer.encode(prefix + text)
    before = len(tokenizer.encode(prefix))
    stream = tokenizer.stream(prefix)
    for i in range(before, len(whole)):
        expected = (whole.word_ids[i], whole.previous_word_ids[i])
        assert stream.push(int(whole.char_ids[i])) == expected


def test_a_stream_takes_any_order_of_bytes_and_special_tokens(tokenizer: DualTokenizer) -> None:
    stream = tokenizer.stream()
    vocabulary = tokenizer.vocabulary
    for char_id in (
        *vocabulary.byte_ids[[0x80, 0xFF, 0xE4, 0x41, 0xBF, 0xBF]].tolist(),
        vocabulary.eos_id,
        300,
    ):
        word, previous = stream.push(char_id)
        assert word == 0 or char_id == 300
        assert 0 <= previous < tokenizer.word_vocab_size


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_a_stream_refuses_an_id_outside_the_vocabulary(tokenizer: DualTokenizer, bad: int) -> None:
    with pytest.raises(ValueError, match="not all in 0"):
        tokenizer.stream().push(bad)


def test_a_lone_surrogate_is_named_with_position_and_remedy(tokenizer: DualTokenizer) -> None:
    for call in (tokenizer.encode, tokenizer.stream, tokenizer.segment):
        with pytest.raises(BadSampleError, match=r"U\+D83D at character 2.*errors='replace'"):
            call("中a\ud83d!")


def test_the_two_id_spaces_are_as_documented(tokenizer: DualTokenizer) -> None:
    assert tokenizer.word_vocab_size == tokenizer.num_words + tokenizer.vocab_size
    encoding = tokenizer.encode("x，中")
    assert encoding.word_ids[:2].tolist() == [0, 0]
    assert encoding.previous_word_ids.tolist() == [0, *(tokenizer.num_words + encoding.char_ids[:2])]


def test_files_are_read_and_named_when_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path))
    words, user = tmp_path / "words.txt", tmp_path / "user.txt"
    words.write_text("甲 5\n乙 3\n", "utf-8")
    user.write_text("甲乙\n", "utf-8")
    tokenizer = DualTokenizer(words=str(words), user_words=str(user))
    assert tokenizer.segment("甲乙乙甲") == ["甲乙", "乙", "甲"]
    words.unlink()
    again = pickle.loads(pickle.dumps(tokenizer))  # as a loader worker gets it
    assert again.fingerprint == tokenizer.fingerprint
    assert again.segment("甲乙乙甲") == ["甲乙", "乙", "甲"]
    with pytest.raises(FileNotFoundError, match=r"words file '.*words\.txt'"):
        DualTokenizer(words=str(words))


def test_every_part_changes_the_fingerprint(small_tokenizer) -> None:
    made = [
        small_tokenizer(),
        small_tokenizer(max_words=3),
        small_tokenizer("甲 5\n"),
        small_tokenizer(user_words="甲 1\n"),
        small_tokenizer(characters="abc人工"),
    ]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)
    assert small_tokenizer().fingerprint == made[0].fingerprint
    assert made[1].num_words == 4


def test_words_beyond_max_words_are_words_with_shared_ids_if_hashed(small_tokenizer) -> None:
    words = "甲 50\n乙 40\n甲乙 30\n丙丁 20\n戊 5\n"
    cut, hashed = small_tokenizer(words, max_words=3), small_tokenizer(words, max_words=3, hashed_words=4)
    assert cut.segment("丙丁戊") == ["丙", "丁", "戊"]
    assert hashed.segment("丙丁戊") == ["丙丁", "戊"]
    assert hashed.num_words == cut.num_words + 4 == 8
    first_bucket = cut.num_words
    ids = hashed.encode("甲乙丙丁戊")
    assert ids.word_ids[:2].tolist() == [1, 3]
    assert ids.word_ids[2] == 0  # 丙 alone is no word
    assert ids.word_ids[3] >= first_bucket
    assert ids.previous_word_ids[4] == ids.word_ids[3]
    assert ids.word_ids[4] == 0  # a lone character says who it is better than a bucket would
    assert hashed.word_vocab_size == 8 + hashed.vocab_size


def test_an_unknown_run_of_letters_has_the_bucket_of_what_is_written_of_it(small_tokenizer) -> None:
    tokenizer = small_tokenizer(hashed_words=1000)
    plain = small_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text).word_ids.tolist()

    assert ids("ab") == plain.encode("ab").word_ids.tolist()  # a known word
    assert ids("don't") != ids("don'x")
    assert ids("zebra")[:3] == ids("zebu")[:3] and ids("zebra")[3] != ids("zebu")[3]
    assert ids("Zebra") == ids("zebra")
    assert ids("zebra")[0] == 0
    assert all(index >= plain.num_words for index in ids("zebra")[1:])
    assert tokenizer.encode("zebra ").previous_word_ids[-1] == ids("zebra")[-1]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=any_mix | st.text(alphabet="ab don't人工智能12𠮷", max_size=20), hashed_words=st.sampled_from([0, 3])
)
def test_the_previous_word_follows_from_word_ids_and_starts(
    small_tokenizer, text: str, hashed_words: int
) -> None:
    """On this a prepared data set relies, which keeps no previous-word ids."""
    tokenizer = small_tokenizer(max_words=5, hashed_words=hashed_words)
    encoding = tokenizer.encode(text)
    last = np.where(encoding.word_ids, encoding.word_ids, tokenizer.num_words + encoding.char_ids)
    previous = [last[start - 1] if start else 0 for start in encoding.starts]
    assert encoding.previous_word_ids.tolist() == previous


def test_buckets_are_part_of_the_fingerprint_and_none_changes_nothing(small_tokenizer) -> None:
    made = [small_tokenizer(), small_tokenizer(hashed_words=8), small_tokenizer(hashed_words=9)]
    assert len({tokenizer.fingerprint for tokenizer in made}) == 3
    again = pickle.loads(pickle.dumps(made[1]))
    assert again.fingerprint == made[1].fingerprint and again.num_words == made[1].num_words
    for bad in (-1, 2**24 + 1):
        with pytest.raises(ValueError, match="hashed_words"):
            small_tokenizer(hashed_words=bad)


def test_full_context_comes_from_the_same_encoding(tokenizer: DualTokenizer) -> None:
    text = "人工智能 and don't 三国演义"
    causal, full = tokenizer.encode(text), tokenizer.encode(text, full_context=True)
    again = causal.full_context()
    assert all(np.array_equal(column, vars(full)[name]) for name, column in vars(again).items())
    assert np.array_equal(causal.full_context_word_ids(), full.word_ids)
    for broken in (replace(causal, starts=None), replace(causal, starts=causal.starts + 1)):
        with pytest.raises(ValueError, match="from its beginning"):
            broken.full_context()


def test_words_that_no_vocabulary_can_spell_are_an_error(small_tokenizer) -> None:
    with pytest.raises(ValueError, match="spelled"):
        small_tokenizer("甲 5\n", characters="abc")
    with pytest.raises(ValueError, match="max_words"):
        small_tokenizer(max_words=0)


def test_runs_of_latin_letters_are_one_word_each(small_tokenizer) -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.segment("Abc don’t 'ab' abx12 été人工") == [
        *("Abc", " ", "don’t", " ", "'", "ab'", " ", "abx12", " ", "été", "人工")
    ]
    word = tokenizer.segmenter.word
    ids = tokenizer.encode("abx don't").word_ids.tolist()
    assert [word(index) if index else "" for index in ids] == [
        "",
        "ab",
        "ab",
        "",
        "d",
        "d",
        "don",
        "don",
        "don't",
    ]


def test_importing_it_loads_neither_torch_nor_numba_nor_jieba() -> None:
    code = "import sys, datamodules.text; sys.exit(bool({'torch', 'numba', 'jieba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["人工智能天下大势，分久必合。", "a", "don't ", "🙂\U00012345", "中"])
def test_a_line_of_ten_megabytes_is_exact_and_takes_memory_by_its_length(
    tokenizer: DualTokenizer, unit: str
) -> None:
    text = unit * (10_000_000 // len(unit.encode()))
    tokenizer.encode(unit)  # compiled
    tracemalloc.start()
    started = time.perf_counter()
    encoding = tokenizer.encode(text, full_context=True)
    elapsed = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert elapsed < 20
    assert peak < 100 * len(encoding)
    # Far from both ends every repetition of the unit looks the same.
    period = len(tokenizer.encode(unit))
    middle = slice(1000 * period, 2000 * period)
    begins = encoding.starts % period
    for column in (encoding.char_ids, encoding.word_ids, encoding.previous_word_ids, begins):
        assert np.array_equal(column[middle][:period], column[middle][-period:])
    assert tokenizer.decode(encoding.char_ids) == text
