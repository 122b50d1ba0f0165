"""`onn tokenizer` as real processes, on corpora small enough to count by hand."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from cli_standins import Outcome

from datamodules.text import DualTokenizer
from datamodules.text.corpus import BoundedCounter
from datamodules.text.vocabulary import CharacterVocabulary
from datamodules.text.words import WordList

Onn = Callable[..., Outcome]
CHINESE = "人工智能，人工智能！三国演义。"
ENGLISH = "The dog's bone: the DOG’s bones, 'tis 2026 and été 𠮷"


def process(*arguments: str, folder: Path) -> Outcome:
    command = [sys.executable, "-m", "onn_lightning", "tokenizer", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, encoding="utf-8")
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def corpus(folder: Path) -> Path:
    """A text, JSON Lines in two compressions, one line of them broken."""
    texts, lines = folder / "texts", folder / "lines"
    texts.mkdir()
    lines.mkdir()
    (texts / "a.txt").write_text(CHINESE, "utf-8")
    (texts / "b.md").write_text("ok", "utf-8")
    record = json.dumps({"text": ENGLISH}, ensure_ascii=False).encode()
    (lines / "a.jsonl.gz").write_bytes(gzip.compress(record + b"\n{broken\n" + record + b"\n", mtime=0))
    (lines / "b.jsonl.zst").write_bytes(zstandard.compress(record + b"\n"))
    return folder


def test_what_is_built_holds_the_corpus_and_serves_a_model(corpus: Path) -> None:
    built = process("build", "texts", "lines", "--to", "made", "--min_count", "1", folder=corpus)
    assert built.code == 0, built.err
    assert "read 5 documents" in built.out and "TextModality" in built.out
    assert "a.jsonl.gz:2" in built.err and "broken JSON" in built.err  # skipped and named
    words = WordList.read((corpus / "made/words.txt").read_bytes())
    counts = dict(zip(words.words, words.counts, strict=True))
    assert {word: counts[word] for word in ("人工智能", "三国演义", "the", "dog's", "bone", "tis")} == {
        "人工智能": 2,
        "三国演义": 1,
        "the": 6,
        "dog's": 6,
        "bone": 3,
        "tis": 3,
    }
    assert counts["2026"] == counts["été"] == 3
    assert "，" in CharacterVocabulary.from_json((corpus / "made/tokenizer.json").read_bytes())

    tokenizer = DualTokenizer(str(corpus / "made/tokenizer.json"), str(corpus / "made/words.txt"))
    assert tokenizer.segment("人工智能 the dog's") == ["人工智能", " ", "the", " ", "dog's"]
    assert not tokenizer.vocabulary.is_byte[tokenizer.encode(CHINESE + ENGLISH).char_ids].any()

    report = process(
        *("report", "texts", "lines", "--vocabulary", "made/tokenizer.json", "--words", "made/words.txt"),
        "--json",
        folder=corpus,
    )
    figures = json.loads(report.out)["total"]
    assert figures["documents"] == 5 and figures["bytes_fallback"] == 0
    assert figures["characters_per_token"] == 1
    assert figures["words"] - figures["known_words"] == 3  # 𠮷, which no dictionary has, once a record


def test_building_again_gives_the_same_bytes_and_replaces_nothing_unasked(onn: Onn, corpus: Path) -> None:
    build = ("tokenizer", "build", "texts", "lines", "--to", "made")
    assert onn(*build).code == 0
    first = {file.name: file.read_bytes() for file in (corpus / "made").iterdir()}
    assert set(first) == {"tokenizer.json", "words.txt"}
    refused = onn(*build)
    assert refused.code == 2 and "made/tokenizer.json exists" in refused.err
    assert onn("tokenizer", "build", "lines", "texts", "--to", "made", "--overwrite").code == 0
    assert {file.name: file.read_bytes() for file in (corpus / "made").iterdir()} == first


def test_either_part_may_be_the_built_in_one_and_sizes_are_kept(onn: Onn, corpus: Path) -> None:
    build = ("tokenizer", "build", "texts", "lines", "--min_count", "3")
    assert onn(*build, "--to", "words", "--characters", "built-in", "--num_words", "3").code == 0
    assert [file.name for file in (corpus / "words").iterdir()] == ["words.txt"]
    assert (corpus / "words/words.txt").read_text("utf-8") == "dog's 6\nthe 6\n2026 3\n"
    assert onn(*build, "--to", "characters", "--words", "built-in", "--num_characters", "100").code == 0
    assert [file.name for file in (corpus / "characters").iterdir()] == ["tokenizer.json"]
    made = CharacterVocabulary.from_json((corpus / "characters/tokenizer.json").read_bytes())
    assert made.characters[:3] == ["\t", "\n", "\r"] and len(made.characters) == 100
    assert {"é", "’"} < set(made.characters) and "国" not in made  # the most frequent beside ASCII
    nothing = onn(*build, "--to", "x", "--words", "built-in", "--characters", "built-in")
    assert nothing.code == 2 and "nothing to build" in nothing.err


def test_user_words_are_found_in_the_corpus(onn: Onn, folder: Path) -> None:
    (folder / "a.txt").write_text("钱七八见孙五六，钱七八大笑。", "utf-8")
    (folder / "names.txt").write_text("钱七八\n孙五六\n", "utf-8")
    build = ("tokenizer", "build", "a.txt", "--min_count", "1")
    assert (
        onn(*build, "--to", "without").code
        == onn(*build, "--to", "with", "--user_words", "names.txt").code
        == 0
    )
    found = [(folder / made / "words.txt").read_text("utf-8") for made in ("without", "with")]
    assert "钱七八 2\n" in found[1] and "钱七八" not in found[0]


def test_a_report_says_what_can_be_counted_by_hand(onn: Onn, folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text("人工智能，\U00012345 zzqx", "utf-8")
    (folder / "texts/b.txt").write_text("人 三国", "utf-8")
    report = json.loads(onn("tokenizer", "report", "texts", "--per_file", "--json").out)
    first, second, total = report["files"]["a.txt"], report["files"]["b.txt"], report["total"]
    assert (first["characters"], first["tokens"], first["characters_in_bytes"]) == (11, 14, 1)
    assert first["bytes_fallback"] == pytest.approx(1 / 11)
    assert first["characters_per_token"] == pytest.approx(11 / 14)
    # Words: 人工智能, the one spelled in bytes, and zzqx, whose beginning may be known, but not the whole.
    assert (first["words"], first["known_words"], first["word_characters"]) == (3, 1, 9)
    assert first["multi_characters"] == 4 and first["multi_character_share"] == pytest.approx(4 / 9)
    assert (second["words"], second["known_words"], second["multi_characters"]) == (2, 2, 2)
    assert total["words"] == 5 and total["word_coverage"] == pytest.approx(3 / 5)
    assert total["distinct_characters"] == 12
    assert total["most_frequent_in_bytes"] == {"\U00012345": 1}
    lines = onn("tokenizer", "report", "texts", "--per_file").out
    assert "a.txt" in lines and "6.6667%" in lines and "60.00% of 5" in lines


def test_hashed_buckets_are_not_known_words(onn: Onn, folder: Path) -> None:
    (folder / "a.txt").write_text("zzqx 人工智能", "utf-8")
    arguments = ("tokenizer", "report", "a.txt", "--max_words", "100", "--hashed_words", "9", "--json")
    assert json.loads(onn(*arguments).out)["total"]["known_words"] == 0


def test_a_run_of_bad_samples_stops_it(onn: Onn, folder: Path) -> None:
    (folder / "a.jsonl").write_text("{broken\n" * 200)
    stopped = onn("tokenizer", "report", "a.jsonl")
    assert stopped.code == 1 and "101 bad samples in a row" in stopped.err
    (folder / "a.txt").write_bytes(b"\xff\xfe\xfd")
    skipped = onn("tokenizer", "report", "a.txt", "--json")
    assert skipped.code == 0 and json.loads(skipped.out)["total"]["documents"] == 0


def test_a_string_is_shown_character_by_character(folder: Path) -> None:
    shown = process(
        "encode", "人工智能 zq\U00012345", "--max_words", "50000", "--hashed_words", "7", folder=folder
    )
    assert shown.code == 0, shown.err
    rows = [line.split() for line in shown.out.splitlines()]
    tokenizer = DualTokenizer(max_words=50_000, hashed_words=7)
    ids = tokenizer.encode("人工智能 zq\U00012345").char_ids.tolist()
    assert [row[0] for row in rows[1:]] == [str(char_id) for char_id in ids]
    assert rows[2][1:] == ["工", "人工", "-", "人工智能"]
    assert rows[3][1:] == ["智", "智", "人工", "人工智能"]
    assert rows[5][1:] == ["␠", "-", "人工智能", "-"]
    assert rows[7][2].startswith("#") and rows[7][3] == "␠"
    assert rows[8][1] == "<0xF0>"
    back = process("decode", *map(str, ids), folder=folder)
    assert back.out == "人工智能 zq\U00012345\n"


def test_ids_are_given_as_json(onn: Onn) -> None:
    columns = json.loads(onn("tokenizer", "encode", "人工智能", "--json").out)
    causal = DualTokenizer().encode("人工智能")
    assert columns["char_ids"] == causal.char_ids.tolist()
    assert columns["word_ids"] == causal.word_ids.tolist()
    assert columns["previous_word_ids"] == causal.previous_word_ids.tolist()
    assert columns["full_context_word_ids"] == [causal.word_ids[-1]] * 4


def test_a_vocabulary_of_one_s_own_decodes(onn: Onn, folder: Path) -> None:
    vocabulary = CharacterVocabulary.from_characters("ab")
    (folder / "tokenizer.json").write_bytes(vocabulary.to_json())
    ids = [str(index) for index in vocabulary.encode("abba")]
    assert onn("tokenizer", "decode", *ids, "--vocabulary", "tokenizer.json").out == "abba\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no action; actions: build"),
        (("biuld",), 2, "unknown action 'biuld' (did you mean 'build'?)"),
        (("build", "a.txt"), 2, "--to"),
        (("build", "nowhere", "--to", "x"), 2, "'nowhere' does not exist"),
        (("build", "a.txt", "--to", "x", "--num_words", "0"), 2, "0 is below 1"),
        (("build", "a.txt", "--to", "x", "--min_count", "9"), 1, "no word occurs 9 times"),
        (("report", "a.xyz"), 1, "cannot tell what kind of corpus"),
        (("report", "a.txt", "--words", "nowhere.txt"), 1, "words file 'nowhere.txt'"),
        (("report", "a.txt", "--per-file"), 2, "did you mean '--per_file'?"),
        (("encode", "x", "--hashed_words", "-1"), 1, "hashed_words must be in 0"),
        (("decode", "999999"), 1, "id 999999 at position 0"),
        (("decode", "x"), 2, "invalid int value: 'x'"),
        (("decode", "5", "--vocabulary", "a.txt"), 1, "'a.txt' is not a Hugging Face tokenizer.json"),
    ],
)
def test_a_mistake_is_one_line(
    onn: Onn, folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (folder / "a.txt").write_text("人工智能", "utf-8")
    (folder / "a.xyz").write_text("what is it")
    failed = onn("tokenizer", *arguments)
    assert failed.code == code
    assert message in failed.err and len(failed.err.splitlines()) == 1
    assert not (folder / "x").exists()


def test_help_needs_no_heavy_import(folder: Path) -> None:
    code = "import sys; from onn_lightning.cli.main import main; main(['tokenizer', '--help']); " + (
        "sys.exit(bool({'torch', 'numba', 'numpy', 'datatrove'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "actions:" in done.stdout


def test_counts_in_bounded_memory_miss_nothing_frequent() -> None:
    counter = BoundedCounter(limit=100)
    for number in range(5_000):
        counter.update([f"rare{number}", "often", f"some{number % 20}"])
    assert len(counter.counts) <= 100
    assert counter.error < 500
    for thing, true in {"often": 5_000, **{f"some{number}": 250 for number in range(20)}}.items():
        assert true - counter.error <= counter.counts[thing] <= true


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(folder: Path) -> None:
    code = (
        "import sys; from onn_lightning.cli.main import main; main(sys.argv[1:]); "
        # not getrusage: its peak begins with that of the process that started this one
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    line = (
        json.dumps({"text": "话说天下大势，分久必合。the people went on " * 500}, ensure_ascii=False) + "\n"
    )
    peaks = []
    for size in (1_000, 2_000):
        (folder / "a.jsonl").write_text(line * size, "utf-8")
        arguments = ("tokenizer", "build", "a.jsonl", "--to", "made", "--overwrite")
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0]
