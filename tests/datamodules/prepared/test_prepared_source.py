"""Training reads prepared data as it would have read the raw documents."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import PreparedSource, TextModality
from datamodules.prepared import DamagedDataError, Manifest
from datamodules.prepared.rows import EncodedDocument
from datamodules.text import DualTokenizer
from datamodules.text.vocabulary import CharacterVocabulary
from onn_lightning.document import encode_document
from onn_lightning.modality import BadSampleError

Maker = Callable[..., Path]
AsPlain = Callable[[Any], list[Any]]


@pytest.fixture(scope="module")
def text() -> TextModality:
    return TextModality()


def test_every_document_comes_as_it_was_prepared(
    make_set: Maker, documents: list[EncodedDocument], as_plain: AsPlain
) -> None:
    source = PreparedSource(make_set())
    assert len(source) == len(documents) == source.block_ends[-1] and not source.follows
    assert [as_plain(source[n]) for n in range(len(source))] == [as_plain(each) for each in documents]
    for modality in ("text", "image", "audio", "series", "video"):
        expected = [n for n, each in enumerate(documents) if any(name == modality for name, _, _ in each)]
        assert list(source.indices_with(modality)) == expected
    assert source.describe(21).endswith("shards/00001-000.arrow, document 1 (set: 21)")
    for index in (-1, 40):
        with pytest.raises(IndexError, match=f"document {index} of prepared data .*, which has 40"):
            source[index]


def test_prepared_text_becomes_the_segments_of_raw_text(
    make_set: Maker, text: TextModality, tokenizer: DualTokenizer
) -> None:
    raw = [
        [("text", "话说天下大势，分久必合 \ud83e\udd9c".encode("utf-16", "surrogatepass").decode("utf-16"))],
        [("text", "which one?", False), ("text", "counterrevolutionaries' " + "z" * 400, True)],
        [("text", ""), ("text", "\x85\r\n𠀀")],
    ]
    encoded = [[(item[0], tokenizer.encode(item[1]), item[-1] is not False) for item in each] for each in raw]
    source = PreparedSource(make_set("texts", encoded))
    source.check({"text": text})
    for number, document in enumerate(raw):
        expected = encode_document(document, {"text": text})
        found = encode_document(source[number], {"text": text})
        assert len(found) == len(expected) >= 3
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.features, other.features) and one.features.dtype == torch.int64
            for column in ("targets", "loss_mask"):
                theirs = getattr(other, column)
                assert (getattr(one, column) is None) == (theirs is None)
                assert theirs is None or torch.equal(getattr(one, column), theirs)


def test_making_a_source_touches_no_disk_and_a_wrong_path_says_what_to_do(
    tmp_path: Path, make_set: Maker
) -> None:
    for path, message in (
        (tmp_path / "none", r"none' does not exist: run `onn prepare`, or correct `path`"),
        (tmp_path, r"is no prepared data set \(it has no manifest\.json\), and holds none"),
    ):
        source = PreparedSource(path)
        with pytest.raises(FileNotFoundError, match=message):
            len(source)
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        len(PreparedSource(tmp_path / "none", follow=True))
    with pytest.raises(ValueError, match="holds no document"):
        len(PreparedSource(make_set("empty", [])))
    with pytest.raises(ValueError, match="is one prepared data set, which never grows: leave out `follow`"):
        len(PreparedSource(make_set(), follow=True))
    with pytest.raises(ValueError, match="positive number"):
        PreparedSource(tmp_path, weight=0)


def other_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DualTokenizer:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "cache"))
    vocabulary = CharacterVocabulary.from_characters("人工智能").to_json()
    return DualTokenizer.from_files({"vocabulary": vocabulary, "words": "人工 3\n".encode()}, max_words=1)


def test_another_tokenizer_is_refused_with_both_named_and_the_remedy(
    make_set: Maker, text: TextModality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = other_words(monkeypatch, tmp_path)
    source = PreparedSource(make_set("own", [[("text", own.encode("人工智能"), True)]], own))
    with pytest.raises(
        ValueError,
        match=rf"own' was prepared with tokenizer {own.fingerprint}, .* has {text.tokenizer.fingerprint} .*"
        r"own/tokenizer' .* max_words = 1 and hashed_words = 0, or prepare the data again",
    ):
        source.check({"text": text})
    folder = tmp_path / "own" / "tokenizer"
    fitting = TextModality(str(folder / "vocabulary.json"), str(folder / "words.txt"), max_words=1)
    PreparedSource(tmp_path / "own").check({"text": fitting})
    PreparedSource(make_set("right")).check({"text": text, "image": text})
    PreparedSource(make_set("images", [[("image", b"x", True)]], own)).check(
        {"text": text}
    )  # no text, no matter
    PreparedSource(tmp_path / "own").check({})


def test_sets_of_two_tokenizers_do_not_make_one_source(
    make_set: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = other_words(monkeypatch, tmp_path)
    make_set("all/1")
    make_set("all/2", [[("text", own.encode("人工智能"), True)]], own)
    with pytest.raises(ValueError, match=rf"all/2' was prepared with tokenizer {own.fingerprint}, .* before"):
        len(PreparedSource(tmp_path / "all"))


def test_a_folder_of_sets_is_read_in_the_order_of_names(
    make_set: Maker, documents: list[EncodedDocument], tmp_path: Path, as_plain: AsPlain
) -> None:
    for name, bounds in (("b", (10, 30)), ("a", (0, 10)), ("c", (30, 40))):
        make_set(f"all/{name}", documents[slice(*bounds)])
    for ignored in ("0.partial", ".hidden"):
        shutil.copytree(tmp_path / "all" / "a", tmp_path / "all" / ignored)
    (tmp_path / "all" / "0").mkdir()
    (tmp_path / "all" / "README").touch()
    source = PreparedSource(tmp_path / "all")
    assert source.block_ends == (40,) and not source.refresh()
    assert [as_plain(source[n]) for n in range(len(source))] == [as_plain(each) for each in documents]
    assert source.describe(29).endswith("all/b/shards/00001-001.arrow, document 2 (all/b: 19)")


def test_a_followed_folder_grows_at_its_end(
    make_set: Maker,
    documents: list[EncodedDocument],
    text: TextModality,
    tmp_path: Path,
    as_plain: AsPlain,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "stream"
    folder.mkdir()
    source = PreparedSource(folder, follow=True)
    assert (len(source), tuple(source.block_ends), source.follows) == (0, (), True)
    assert list(source.indices_with("text")) == [] and not source.refresh()
    source.check({"text": text})

    def add(name: str, *bounds: int) -> None:
        shutil.move(make_set(f"made/{name}", documents[slice(*bounds)]), folder / name)

    add("2024-01", 0, 10)
    assert len(source) == 0 and source.refresh() and not source.refresh()
    assert (len(source), tuple(source.block_ends)) == (10, (10,))
    worker = pickle.loads(pickle.dumps(source))  # a copy knows what the original knew
    add("2024-03", 10, 30)
    add("2024-04", 0, 0)
    add("2024-05", 30, 40)
    assert source.refresh() and (len(source), tuple(source.block_ends)) == (40, (10, 30, 40))
    assert len(worker) == 10 and worker.refresh() and tuple(worker.block_ends) == (10, 30, 40)
    for reader in (source, worker, PreparedSource(folder, follow=True)):
        assert [as_plain(reader[n]) for n in range(40)] == [as_plain(each) for each in documents]

    add("2024-02", 0, 5)
    with caplog.at_level(logging.WARNING):
        assert not source.refresh() and not source.refresh()
    (record,) = caplog.records
    assert "stream/2024-02' is not read: it appeared after '2024-05'" in record.getMessage()
    add("2024-06", 5, 10)
    assert source.refresh() and tuple(source.block_ends) == (10, 30, 40, 45)


def test_a_followed_folder_refuses_a_new_set_that_is_damaged_or_of_another_tokenizer(
    make_set: Maker, text: TextModality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_set("all/1")
    source = PreparedSource(tmp_path / "all", follow=True)
    source.check({"text": text})
    damaged = make_set("all/2")
    (damaged / "manifest.json").write_bytes(b"{")
    with pytest.raises(DamagedDataError, match=r"2/manifest\.json' is damaged"):
        source.refresh()
    shutil.rmtree(damaged)
    own = other_words(monkeypatch, tmp_path)
    make_set("all/2", [[("text", own.encode("人工智能"), True)]], own)
    with pytest.raises(ValueError, match="was prepared with tokenizer"):
        source.refresh()
    assert len(source) == 40


def test_damage_stops_reading_with_the_name_of_the_shard(make_set: Maker) -> None:
    folder = make_set()
    shard = folder / "shards" / "00001-000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    source = PreparedSource(folder)
    assert source[0]
    with pytest.raises(DamagedDataError, match=r"00001-000\.arrow', record batch \d+ .* is damaged"):
        [source[number] for number in range(20, 40)]
    shard.unlink()
    source = PreparedSource(folder)
    with pytest.raises(FileNotFoundError, match=r"00001-000\.arrow', which the manifest names, is missing"):
        len(source)


def test_a_shard_deleted_while_it_is_not_open_is_named_and_can_still_be_described(make_set: Maker) -> None:
    folder = make_set()
    source = PreparedSource(folder)
    assert len(source) == 40 and len(source[25]) > 0
    for path in (folder / "shards").glob("00000-*.arrow"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"00000-000\.arrow' is missing, its index is there"):
        source[0]
    assert source.describe(0).endswith("00000-000.arrow, document 0")


def test_a_shard_of_another_set_is_refused_though_it_is_whole(
    make_set: Maker, documents: list[EncodedDocument]
) -> None:
    one, other = make_set("one"), make_set("two", documents)  # the ids have the same length
    for suffix in (".arrow", ".json"):
        shutil.copy(other / "shards" / f"00000-000{suffix}", one / "shards" / f"00000-000{suffix}")
    with pytest.raises(DamagedDataError, match="is not the shard that the manifest names"):
        PreparedSource(one)[0]


def test_a_set_cannot_choose_which_files_of_the_machine_are_read(make_set: Maker) -> None:
    source = PreparedSource(make_set("evil", [[("image", "/etc/passwd", True)], [("note", "fine", True)]]))
    with pytest.raises(BadSampleError, match=r"evil/shards/.*its image is a path, and a data set must not"):
        source[0]
    assert source[1] == [("note", "fine", True)]


def read_in_worker(source: PreparedSource, results: Any, as_plain: AsPlain) -> None:
    results.put([as_plain(source[number]) for number in (0, 39)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_process_reads_a_source_that_its_parent_has_open(
    make_set: Maker, documents: list[EncodedDocument], as_plain: AsPlain, method: str
) -> None:
    source = PreparedSource(make_set())
    assert source[0] and len(pickle.dumps(source)) < 20_000
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=read_in_worker, args=(source, results, as_plain))
    process.start()
    assert results.get(timeout=60) == [as_plain(documents[number]) for number in (0, 39)]
    process.join()


def linked(folder: Path, copies: int) -> None:
    """Make a set of one shard into one of many: links to the same file under many names."""
    manifest = Manifest.read(folder)
    (shard,) = manifest.shards
    shards, records = folder / "shards", []
    index = (shards / "00000-000.json").read_text("utf-8")
    for number in range(copies):
        name = f"{number:05d}-000"
        if number:
            os.link(shards / shard.name, shards / f"{name}.arrow")
            (shards / f"{name}.json").write_text(index.replace("00000-000", name), "utf-8")
        records.append(dataclasses.replace(shard, name=f"{name}.arrow"))
    dataclasses.replace(manifest, shards=tuple(records)).write(folder)


def test_only_so_many_shards_are_open_at_a_time(make_set: Maker, documents: list[EncodedDocument]) -> None:
    folder = make_set("many", documents[:2], tasks=1)
    linked(folder, 200)
    source = PreparedSource(folder)
    before = len(os.listdir("/proc/self/fd"))
    for number in [*range(len(source)), *range(0, len(source), 7)]:
        source[number]
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert len(source) == 400


def test_opening_thousands_of_shards_takes_no_time_and_reads_one(
    make_set: Maker, documents: list[EncodedDocument], as_plain: AsPlain
) -> None:
    folder = make_set("many", documents[:5], tasks=1)
    linked(folder, 3000)
    for index in (folder / "shards").glob("*.json"):
        if index.name != "02500-000.json":
            index.write_bytes(b"never read")
    start = time.perf_counter()
    source = PreparedSource(folder)
    assert len(source) == 15_000
    assert as_plain(source[12_503]) == as_plain(documents[3])
    assert time.perf_counter() - start < 2  # 0.1 s where nothing else runs


def test_training_needs_neither_the_pipeline_nor_datatrove(make_set: Maker) -> None:
    program = (
        "import sys; from datamodules import PreparedSource; PreparedSource(sys.argv[1])[0]; "
        "print([name for name in sys.modules if name.startswith(('datatrove', 'datamodules.prepare.'))])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(make_set())], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
