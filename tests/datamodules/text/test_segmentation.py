"""Word ids: against a literal reading of the definition, against jieba, and against leaks."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datamodules.text import DualTokenizer
from datamodules.text.hashing import buckets_of
from datamodules.text.segmentation import Segmenter
from datamodules.text.vocabulary import CharacterVocabulary
from datamodules.text.words import WordList, jieba_dictionary

VOCABULARY = CharacterVocabulary.from_characters("ABabcd'’12人工智能é ,")  # 文, ß and 𠮷 are spelled in bytes
WORDS = (
    "人 90\n人工 30\n人工智能 20\n工 9\n智 4\n能 60\n人文 80\n"
    "ab 40\nabc 9\nb 7\nd' 3\na'b 4\n12 3\n能ab 900\n1人 50\n"
)
RUN = re.compile(r"[A-Za-z0-9é]+(?:['’][A-Za-z0-9é]+)*['’]?")
mixed = st.text(alphabet="ABabcd'’12人工智能é ,文ß𠮷𠮸", max_size=16) | st.tuples(
    st.text(alphabet="Aabcd'’12", max_size=6), st.text(alphabet="人工智能文,", max_size=8)
).map("".join)
word_lists = st.dictionaries(
    st.text(alphabet="abcd'12人工智能文", min_size=1, max_size=5),
    st.integers(1, 1000),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Known:
    """What a segmenter should know: {word: (id, cost)}, the cost of the unknown, and where buckets begin."""

    words: dict[str, tuple[int, int]]
    floor: int
    first_bucket: int
    buckets: int

    def bucket(self, text: str) -> int:
        codes = np.array([ord(character) for character in text], dtype=np.uint32)
        return self.first_bucket + int(buckets_of(codes, np.array([len(codes)]), self.buckets)[0])


def make_segmenter(words: str, max_words: int | None = None, buckets: int = 0) -> tuple[Segmenter, Known]:
    """A segmenter and what it should know of the words that it can spell."""
    content = words.encode()

    def read() -> WordList:
        return WordList.read(content, max_words=max_words, keep_cut=buckets > 0)

    digest = hashlib.md5(f"{words} {max_words} {buckets}".encode()).hexdigest()
    segmenter = Segmenter(VOCABULARY, read, digest, buckets)
    word_list = read()
    counts = [*zip(word_list.words, word_list.counts, strict=True)]
    cut = [*zip(word_list.cut, word_list.cut_counts, strict=True)]
    spelled, cut = (
        [(word, count) for word, count in part if all(character in VOCABULARY for character in word)]
        for part in (counts, cut)
    )
    log_total = math.log(sum(count for _, count in spelled + cut))
    known = Known({}, round(log_total * 2**24), 1 + len(spelled), buckets)
    for rank, (word, count) in enumerate(spelled + cut, start=1):
        cost = round((log_total - math.log(count)) * 2**24)
        known.words[word] = (rank if rank <= len(spelled) else known.bucket(word), cost)
    return segmenter, known


def by_definition(prefix: str, table: Known) -> list[tuple[int, int]]:
    """(start, word id) of the words of the best segmentation of a prefix, by trying every edge."""
    known, floor = table.words, table.floor
    folded = prefix.lower().replace("’", "'")
    runs = {match.start(): match.end() for match in RUN.finditer(prefix)}
    inside = {i for start, end in runs.items() for i in range(start + 1, end)}
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for end in range(1, len(prefix) + 1):
        candidates = []
        for start in range(end):
            if start in inside:
                continue
            score, path = best[start]
            piece = folded[start:end]
            if piece in known:
                word, cost = known[piece]
                candidates.append((score - cost, start, [*path, (start, word)]))
            elif start in runs and end <= runs[start]:
                prefixes = [known[piece[:k]][0] for k in range(1, len(piece)) if piece[:k] in known]
                word = prefixes[-1] if prefixes else 0
                if table.buckets:
                    word = table.bucket(piece) if len(piece) > 1 else 0
                candidates.append((score - floor, start, [*path, (start, word)]))
            elif end - start == 1:
                candidates.append((score - floor, start, [*path, (start, 0)]))
        top = max(candidates)
        best.append((top[0], top[2]))
    return best[-1][1]


def expected_row(text: str, words: list[tuple[int, int]], num_words: int) -> tuple[int, int]:
    """(word id, previous-word id) at the end of the last of `words`, which segment a prefix of the text."""
    if len(words) == 1:
        return words[-1][1], 0
    previous_end = words[-1][0] - 1
    last_token = int(VOCABULARY.encode(text[previous_end])[-1])
    return words[-1][1], words[-2][1] or num_words + last_token


def check_against_definition(text: str, words: str, max_words: int | None = None, buckets: int = 0) -> None:
    segmenter, known = make_segmenter(words, max_words, buckets)
    causal = segmenter.table(VOCABULARY.encode(text))
    full = causal.full_context()
    tokens_of = [len(VOCABULARY.encode(character)) for character in text]
    rows = [
        expected_row(text, by_definition(text[: i + 1], known), segmenter.num_words) for i in range(len(text))
    ]
    expected = [row for row, tokens in zip(rows, tokens_of, strict=True) for _ in range(tokens)]
    assert list(zip(causal.word_ids.tolist(), causal.previous_word_ids.tolist(), strict=True)) == expected
    stream = segmenter.stream()
    one_by_one = [stream.advance(VOCABULARY.encode(text)[i : i + 1]) for i in range(len(causal.starts))]
    for column in ("word_ids", "previous_word_ids", "starts"):
        assert [int(getattr(row, column)[0]) for row in one_by_one] == getattr(causal, column).tolist()
    if text:
        starts = [start for start, _ in by_definition(text, known)]
        firsts = np.cumsum([0, *tokens_of])[starts]
        assert np.unique(full.starts).tolist() == firsts.tolist()


@settings(max_examples=300, deadline=None)
@given(text=mixed)
@example("人工智能ab'")
@example("能abc")
@example("文𠮷人文ß")
def test_every_row_is_what_the_definition_says(text: str) -> None:
    check_against_definition(text, WORDS)


@settings(max_examples=100, deadline=None)
@given(text=mixed, words=word_lists, max_words=st.none() | st.integers(1, 6), buckets=st.sampled_from([0, 5]))
def test_every_row_is_what_the_definition_says_for_any_words(
    text: str, words: dict[str, int], max_words: int | None, buckets: int
) -> None:
    lines = "".join(f"{word} {count}\n" for word, count in sorted(words.items()))
    check_against_definition(text, lines + "能 9999\n", max_words, buckets)


@pytest.mark.parametrize("buckets", [0, 7])
def test_a_long_text_is_the_same_read_whole_in_pieces_and_token_by_token(buckets: int) -> None:
    """Longer than the blocks that are read at once, with words that lie across their borders."""
    generator = random.Random(buckets)
    alphabet = "人工智能,ab'1"
    words = {"".join(generator.choices(alphabet[:5], k=generator.randint(1, 9))) for _ in range(300)}
    words |= {"".join(generator.choices(alphabet[5:], k=generator.randint(1, 5))) for _ in range(30)}
    words |= {"".join(generator.choices(alphabet, k=generator.randint(2, 6))) for _ in range(30)}
    lines = "".join(f"{word} {generator.randint(1, 99)}\n" for word in sorted(words) if word.strip(","))
    segmenter, _ = make_segmenter(lines, max_words=200, buckets=buckets)
    text = "".join(
        "".join(generator.choices(letters, k=generator.randint(1, 700)))
        for letters in (alphabet, alphabet[:5], alphabet[5:] + " ", alphabet[:4], "人文𠮷,", "'a ") * 3
    )
    char_ids = VOCABULARY.encode(text)
    whole = segmenter.table(char_ids)
    for size in (1, 2, 255, 256, 257):
        stream = segmenter.stream()
        pieces = [stream.advance(char_ids[i : i + size]) for i in range(0, len(char_ids), size)]
        for column in ("word_ids", "previous_word_ids", "starts"):
            joined = np.concatenate([getattr(piece, column) for piece in pieces])
            assert np.array_equal(joined, getattr(whole, column))


def test_the_design_s_example_holds(tokenizer: DualTokenizer) -> None:
    encoding = tokenizer.encode("人工智能")
    word = tokenizer.segmenter.word
    assert [word(index) for index in encoding.word_ids] == ["人", "人工", "智", "人工智能"]
    assert encoding.previous_word_ids[[0, 1, 3]].tolist() == [0, 0, 0]
    assert word(encoding.previous_word_ids[2]) == "人工"


any_mix = st.lists(
    st.sampled_from(
        ["人工智能", "三国演义", "天下", "the ", "don't", "2026年", "B超", "🙂", "\0", "文", "\n", "卡拉OK"]
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=10,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(prefix=any_mix, one=any_mix, other=any_mix)
def test_what_follows_moves_no_earlier_id(
    tokenizer: DualTokenizer, prefix: str, one: str, other: str
) -> None:
    first, second = tokenizer.encode(prefix + one), tokenizer.encode(prefix + other)
    length = min(len(first), len(second))
    differs = np.flatnonzero(first.char_ids[:length] != second.char_ids[:length])
    same = differs[0] if len(differs) else length  # may end within a character spelled in bytes
    assert same >= len(tokenizer.encode(prefix))
    assert np.array_equal(first.word_ids[:same], second.word_ids[:same])
    assert np.array_equal(first.previous_word_ids[:same], second.previous_word_ids[:same])


@settings(max_examples=200, deadline=None)
@given(text=any_mix)
def test_both_ids_are_equal_at_the_last_token_of_every_word(tokenizer: DualTokenizer, text: str) -> None:
    causal, full = tokenizer.encode(text), tokenizer.encode(text, full_context=True)
    assert np.array_equal(causal.char_ids, full.char_ids)
    starts = tokenizer.segmenter.table(causal.char_ids).full_context().starts
    lasts = np.append(np.flatnonzero(np.diff(starts)), len(starts) - 1) if len(starts) else []
    assert np.array_equal(causal.word_ids[lasts], full.word_ids[lasts])
    assert np.array_equal(causal.previous_word_ids[lasts], full.previous_word_ids[lasts])
    assert len(set(zip(starts.tolist(), full.word_ids.tolist(), strict=True))) == len(set(starts.tolist()))


def test_bytes_of_a_character_carry_no_word(small_tokenizer) -> None:
    tokenizer = small_tokenizer("人 5\n人文 9\n", characters="人 ")
    assert tokenizer.num_words == 2  # 人文 cannot be spelled
    encoding = tokenizer.encode("人文人")
    lone = tokenizer.num_words + int(encoding.char_ids[3])
    assert encoding.word_ids.tolist() == [1, 0, 0, 0, 1]
    assert encoding.previous_word_ids.tolist() == [0, 1, 1, 1, lone]


CLASSICAL = [
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。",
    "汉朝自高祖斩白蛇而起义，一统天下，后来光武中兴，传至献帝，遂分为三国。",
    "推其致乱之由，殆始于桓、灵二帝。桓帝禁锢善类，崇信宦官。及桓帝崩，灵帝即位，大将军窦武、太傅陈蕃共相辅佐。",
    "建宁二年四月望日，帝御温德殿。方升座，殿角狂风骤起，只见一条大青蛇，从梁上飞将下来，蟠于椅上。",
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？",
    "北冥有鱼，其名为鲲。鲲之大，不知其几千里也。化而为鸟，其名为鹏。鹏之背，不知其几千里也。",
]


def test_the_segmentation_is_jieba_s_between_han_characters(tokenizer: DualTokenizer) -> None:
    import jieba

    jieba.setLogLevel(logging.WARNING)
    words = [line.split(" ")[0] for line in jieba_dictionary().decode().split("\n")]
    generator = random.Random(0)
    generated = ["".join(generator.sample(words, 8)) for _ in range(2000)]
    prose = "".join(file.read_text("utf-8") for file in sorted(Path("data/quickstart").glob("*/zh/*.txt")))
    sentences = CLASSICAL + generated + re.findall(r"[^。！？；\n]+[。！？；\n]*", prose)[:5000]
    han = re.compile("[\u4e00-\u9fd5]{2}")

    def bounds(pieces: Sequence[str], text: str) -> set[int]:
        ends = set(np.cumsum([len(piece) for piece in pieces]).tolist())
        return {end for end in ends if han.match(text[end - 1 : end + 1])}

    differing = [
        text
        for text in sentences
        if bounds(tokenizer.segment(text), text) != bounds(jieba.lcut(text, HMM=False), text)
    ]
    assert not set(differing) & set(CLASSICAL)
    assert len(differing) <= 0.001 * len(sentences), differing


def test_causal_ids_do_not_give_the_rest_of_a_word_away(tokenizer: DualTokenizer) -> None:
    """Held-out bits of a word's next character given (character, clue), on frequent words drawn at random.

    Full-context ids leave a tenth of what the two characters before leave, so the test would notice a
    leak; causal ids, which know where the past's words end, may only tell a little more than those.
    """
    words = [word for word in WordList.read(jieba_dictionary(), max_words=1000).words if len(word) > 1][:200]
    text = "".join(random.Random(0).choices(words, k=15_000))
    causal, full = tokenizer.encode(text), tokenizer.encode(text, full_context=True)
    starts = tokenizer.segmenter.table(causal.char_ids).full_context().starts
    chars = causal.char_ids.tolist()
    half = len(chars) // 2
    inner = half + np.flatnonzero(starts[half:-1] == starts[half + 1 :])  # the next one is of the same word

    def held_out_bits(clue: Sequence[int]) -> float:
        """Counts from the first half; backs off from (character, clue) to the character, then to none."""
        contexts = list(zip(chars, clue, strict=True))
        levels = [
            (Counter(keys[:half]), Counter(zip(keys[:half], chars[1:], strict=False)), keys)
            for keys in (chars, contexts)
        ]
        bits = 0.0
        for i in inner.tolist():
            probability = 1 / tokenizer.vocab_size
            for seen, followed, keys in levels:
                probability = (followed[keys[i], chars[i + 1]] + 5 * probability) / (seen[keys[i]] + 5)
            bits -= math.log2(probability)
        return bits / len(inner)

    past = held_out_bits([0, *chars[:-1]])
    leaking = held_out_bits(full.word_ids.tolist())
    assert leaking < 0.2 * past
    assert held_out_bits(causal.word_ids.tolist()) > (past + leaking) / 2


def test_known_words_are_read_back_by_their_ids(tokenizer: DualTokenizer) -> None:
    words = WordList.read(jieba_dictionary()).words
    for rank in (1, 2, 1000, len(words)):
        assert tokenizer.segmenter.word(rank) == words[rank - 1]
    with pytest.raises(ValueError, match="not in 1"):
        tokenizer.segmenter.word(tokenizer.num_words)


def test_two_tries_of_the_same_words_are_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for folder in ("one", "other"):
        monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / folder))
        make_segmenter(WORDS)
        (file,) = (tmp_path / folder).iterdir()
        contents.append(dict(np.load(file)))
    assert all(np.array_equal(contents[0][name], contents[1][name]) for name in contents[0])
