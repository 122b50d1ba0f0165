"""The manifest: the same bytes for the same data, checked when read, damage found and named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.prepared import (
    DamagedDataError,
    Manifest,
    ShardWriter,
    TokenLayout,
    read_tokenizer,
    verify,
    write_manifest,
)
from datamodules.prepared.rows import EncodedDocument
from datamodules.text import DualTokenizer
from datamodules.text.vocabulary import CharacterVocabulary

Maker = Callable[..., Path]


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    edit(data)
    path.write_text(json.dumps(data), "utf-8")


def test_a_manifest_says_what_the_set_holds_and_comes_back_as_it_was_written(
    make_set: Maker, documents: list[EncodedDocument], tokenizer: DualTokenizer
) -> None:
    folder = make_set()
    record = {"step": "length", "kept": 40, "dropped": {"too short": 2}, "examples": {}}
    config = {"seed": 1, "ratio": 0.1, "名": "值", "path": "bytes \udcff"}
    written = write_manifest(folder, tokenizer, [{"name": "web"}], [record], config)
    manifest = Manifest.read(folder)
    assert manifest == written
    assert manifest.documents == 40 and (manifest.records, manifest.config) == ([record], config)
    assert manifest.totals["image"].items == 10 and manifest.totals["text"].tokens == sum(
        len(data) for document in documents for name, data, _ in document if name == "text"
    )
    assert manifest.tokenizer.fingerprint == tokenizer.fingerprint
    assert manifest.layout == TokenLayout.of(tokenizer)
    for shard in manifest.shards:
        content = (folder / "shards" / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
    assert verify(folder) == manifest


def test_a_manifest_has_the_same_bytes_whenever_it_is_made(make_set: Maker) -> None:
    first, second = make_set("a"), make_set("b", tasks=2)
    for path in ("shards", "tokenizer"):
        assert sorted(os.listdir(first / path)) == sorted(os.listdir(second / path))
    names = [json.loads((folder / "manifest.json").read_bytes()) for folder in (first, second)]
    for data in names:
        for shard in data["shards"]:  # the ids of the documents carry the name of the set
            del shard["sha256"], shard["index_sha256"]
    assert json.dumps(names[0]) == json.dumps(names[1])
    content = (first / "manifest.json").read_bytes()
    (first / "manifest.json").unlink()
    shutil.copytree(first, first.with_name("copy"))
    tokenizer = DualTokenizer()
    write_manifest(first.with_name("copy"), tokenizer, sources=[], records=[], config={})
    assert (first.with_name("copy") / "manifest.json").read_bytes() == content


def test_shards_stand_in_the_order_of_tasks_even_beyond_the_digits_of_their_names(
    tmp_path: Path, tokenizer: DualTokenizer, documents: list[EncodedDocument]
) -> None:
    for task in (99_999, 100_000, 2):
        with ShardWriter(tmp_path / "shards", f"{task:05d}", TokenLayout.of(tokenizer)) as writer:
            writer.add("x", documents[0])
    manifest = write_manifest(tmp_path, tokenizer, [], [], {})
    assert [shard.name[:-10] for shard in manifest.shards] == ["00002", "99999", "100000"]


def test_a_set_carries_its_tokenizer_built_in_or_not(
    make_set: Maker, tokenizer: DualTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_tokenizer(make_set("built-in")).fingerprint == tokenizer.fingerprint
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "cache"))
    files = {
        "vocabulary": CharacterVocabulary.from_characters("人工智能ab").to_json(),
        "words": "人工 3\n智能 2\nab 1\n".encode(),
        "user_words": "人工智能\n".encode(),
    }
    own = DualTokenizer.from_files(files, max_words=2, hashed_words=7)
    folder = make_set("own", [[("text", own.encode("人工智能 ab"), True)]], own)
    read = read_tokenizer(folder)
    assert (read.files, read.max_words, read.hashed_words) == (files, 2, 7)
    assert read.fingerprint == own.fingerprint
    (folder / "tokenizer" / "words.txt").write_bytes(b"ab 9\n")
    with pytest.raises(ValueError, match=rf"encoded by tokenizer {own.fingerprint}, this installation makes"):
        read_tokenizer(folder)
    with pytest.raises(DamagedDataError, match=r"1 files are not as they were.*words\.txt"):
        verify(folder)


def test_a_folder_without_manifest_is_no_data_set(make_set: Maker) -> None:
    folder = make_set()
    (folder / "manifest.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"set' is no prepared data set.*run `onn prepare` to its end"
    ):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b'{"version": 1', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"[1]", "is damaged"),
        (b'{"version": 1}', "is damaged"),
        (b'{"version": 2}', "is of format 2, this installation reads 1: update onn_lightning"),
    ],
)
def test_a_broken_manifest_is_named(make_set: Maker, content: bytes, message: str) -> None:
    folder = make_set()
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedDataError, match=rf"manifest\.json' {message}"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["shards"].pop(),
        lambda data: data.update(documents=39),
        lambda data: data["modalities"].pop("image"),
        lambda data: data["shards"][0].update(documents="7"),
        lambda data: data["shards"][0].update(bytes=-1),
        lambda data: data["shards"][0].update(name="../../other/00000-000.arrow"),
        lambda data: data["shards"][0].update(name="/etc/passwd.arrow"),
        lambda data: data["shards"][0].update(more=1),
        lambda data: data["shards"][0].pop("sha256"),
        lambda data: data["tokenizer"].update(num_words=0),
        lambda data: data["tokenizer"]["files"].update({"../x": ""}),
        lambda data: data.update(config=[]),
    ],
)
def test_a_manifest_that_contradicts_itself_or_leaves_its_folder_is_refused(
    make_set: Maker, edit: Callable[[dict[str, Any]], object]
) -> None:
    folder = make_set()
    change(folder, edit)
    with pytest.raises(DamagedDataError, match=r"manifest\.json' is damaged"):
        Manifest.read(folder)


def test_missing_and_truncated_shards_are_named_when_the_manifest_is_read(make_set: Maker) -> None:
    folder = make_set()
    shard = folder / "shards" / "00001-000.arrow"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    with pytest.raises(DamagedDataError, match=rf"00001-000\.arrow' has {size - 1} bytes, .* with {size}"):
        Manifest.read(folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001-000\.arrow', which the manifest names, is missing"):
        Manifest.read(folder)
    shutil.rmtree(folder / "shards")
    with pytest.raises(FileNotFoundError, match=r"00000-000\.arrow', which the manifest names, is missing"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "name", ["shards/00000-001.arrow", "shards/00001-000.json", "tokenizer/vocabulary.json"]
)
def test_verifying_finds_a_flipped_byte_in_any_file(make_set: Maker, name: str) -> None:
    folder = make_set()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert verify(folder, full=False) == Manifest.read(folder)
    with pytest.raises(DamagedDataError, match=rf"1 files are not as they were written, among them .*{name}"):
        verify(folder)


def test_a_shard_that_was_not_finished_makes_no_data_set(make_set: Maker, tokenizer: DualTokenizer) -> None:
    folder = make_set()
    (folder / "manifest.json").unlink()
    (folder / "shards" / "00001-000.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"00001-000\.json', which belongs to"):
        write_manifest(folder, tokenizer, [], [], {})
    assert not (folder / "manifest.json").exists()
