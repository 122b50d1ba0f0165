"""Shards: what is written is read, damage is named, and nothing half ever stands under a final name."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datamodules.prepared import DamagedDataError, Shard, ShardWriter, TokenLayout
from datamodules.prepared.index import BatchRecord, ShardIndex, index_content, index_path
from datamodules.prepared.rows import EncodedDocument
from datamodules.text import DualTokenizer
from datamodules.text.tokenizer import Encoding

AsPlain = Callable[[Any], list[Any]]


def write(
    folder: Path, documents: list[EncodedDocument], layout: TokenLayout, prefix: str = "00000", **sizes: int
) -> list[Path]:
    with ShardWriter(folder, prefix, layout, **sizes) as writer:
        for number, document in enumerate(documents):
            writer.add(f"web: pages.jsonl:{number}", document)
    return writer.shards


@pytest.fixture
def shard(tmp_path: Path, documents: list[EncodedDocument], layout: TokenLayout) -> Path:
    """One shard of several record batches."""
    (path,) = write(tmp_path / "shards", documents, layout, batch_bytes=4_000)
    return path


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def texts_of(documents: list[EncodedDocument]) -> list[Encoding]:
    return [data for document in documents for _, data, _ in document if isinstance(data, Encoding)]


def test_documents_of_all_kinds_come_back_as_they_went_in(
    tmp_path: Path, documents: list[EncodedDocument], layout: TokenLayout, as_plain: AsPlain
) -> None:
    paths = write(tmp_path, documents, layout, max_shard_bytes=16_000, batch_bytes=4_000)
    assert [path.name for path in paths] == [f"00000-{number:03d}.arrow" for number in range(len(paths))]
    assert len(paths) > 2 and sorted(tmp_path.iterdir()) == sorted([*paths, *map(index_path, paths)])
    shards = [Shard(path, layout) for path in paths]
    read = [(shard.id(n), as_plain(shard.document(n))) for shard in shards for n in range(len(shard))]
    assert read == [(f"web: pages.jsonl:{n}", as_plain(each)) for n, each in enumerate(documents)]
    for modality in ("text", "image", "audio", "series", "video"):
        found = [
            bool(n in set(shard.documents_with(modality))) for shard in shards for n in range(len(shard))
        ]
        assert found == [any(name == modality for name, _, _ in document) for document in documents]


def test_the_same_documents_give_the_same_bytes(
    tmp_path: Path, documents: list[EncodedDocument], layout: TokenLayout
) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, documents, layout, max_shard_bytes=16_000, batch_bytes=4_000)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) > 4
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_shard_is_an_ordinary_arrow_file_with_its_counts_beside_it(
    shard: Path, documents: list[EncodedDocument]
) -> None:
    with pa.memory_map(str(shard)) as file:
        table = pa.ipc.open_file(file).read_all()
    index = ShardIndex.read(shard)
    assert table.num_rows == index.documents == len(documents)
    assert sum(map(len, table["tokens"].to_pylist())) == index.tokens == sum(map(len, texts_of(documents)))
    assert index.modalities["text"].tokens == index.tokens
    images = [data for document in documents for name, data, _ in document if name == "image"]
    assert (index.modalities["image"].items, index.modalities["image"].bytes) == (10, sum(map(len, images)))
    assert index.bytes == shard.stat().st_size


def test_prose_takes_at_most_six_bytes_a_character(
    tmp_path: Path, tokenizer: DualTokenizer, layout: TokenLayout
) -> None:
    text = "话说天下大势，分久必合，合久必分。" * 12
    paths = write(tmp_path, [[("text", tokenizer.encode(text), True)]] * 500, layout)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(paths) == 1 and size <= 6 * 500 * len(text)


def test_a_window_runs_over_documents_and_record_batches(
    shard: Path, documents: list[EncodedDocument], layout: TokenLayout
) -> None:
    opened = Shard(shard, layout)
    texts = texts_of(documents)
    columns = ("char_ids", "word_ids", "previous_word_ids")
    stream = [np.concatenate([getattr(text, name) for text in texts]) for name in columns]
    total = len(stream[0])
    assert len(opened.index.token_ends) > 3
    generator = np.random.default_rng(0)
    windows = [(0, total), (total - 1, 1), *((int(end) - 5, 10) for end in opened.index.token_ends[:-1])]
    windows += [
        (int(at), int(generator.integers(1, total - at))) for at in generator.integers(0, total - 1, 50)
    ]
    for offset, length in windows:
        window = opened.token_window(offset, length)
        for name, column in zip(columns, stream, strict=True):
            np.testing.assert_array_equal(getattr(window, name), column[offset : offset + length])
            assert getattr(window, name).dtype == np.int64
        characters = opened.character_window(offset, length)
        assert characters.dtype == np.int64 and characters.tolist() == window.char_ids.tolist()
    for offset, length in ((-1, 5), (total - 4, 5), (total, 1)):
        with pytest.raises(IndexError, match=rf"00000-000\.arrow', which has {total}"):
            opened.token_window(offset, length)
    with pytest.raises(IndexError, match="document 40 of"):
        opened.document(40)


def test_a_flipped_byte_in_tokens_is_found_at_the_first_touch_and_named(
    shard: Path, layout: TokenLayout, documents: list[EncodedDocument], as_plain: AsPlain
) -> None:
    index = ShardIndex.read(shard)
    flip(shard, index.starts[2] + index.sizes[2] - 100)
    opened = Shard(shard, layout)
    first = index.document_ends[1]
    assert as_plain(opened.document(first - 1)) == as_plain(documents[first - 1])  # its batch is whole
    for touch in (
        lambda: opened.document(first),
        lambda: opened.token_window(0, index.tokens),
        lambda: list(opened.documents_with("text")),
    ):
        with pytest.raises(
            DamagedDataError, match=r"-000\.arrow', record batch 2 .* is damaged: CRC-32.*restore"
        ):
            touch()


def test_a_flipped_byte_in_a_medium_is_found(
    shard: Path, layout: TokenLayout, documents: list[EncodedDocument]
) -> None:
    flip(shard, shard.read_bytes().index(b"\x89PNG" + bytes([5])) + 200)
    with pytest.raises(DamagedDataError, match=r"record batch \d+ \(bytes .* is damaged"):
        Shard(shard, layout).document(5)


def test_any_flipped_byte_of_any_record_batch_is_found(shard: Path, layout: TokenLayout) -> None:
    index = ShardIndex.read(shard)
    for at in range(index.starts[1], index.starts[1] + index.sizes[1], 97):
        flip(shard, at)
        with pytest.raises(DamagedDataError, match="record batch 1"):
            Shard(shard, layout).document(index.document_ends[0])
        flip(shard, at)
    Shard(shard, layout).document(index.document_ends[0])


@pytest.mark.parametrize("keep", [0, 1, 10_000, -1])
def test_a_truncated_shard_is_named_with_both_sizes(shard: Path, layout: TokenLayout, keep: int) -> None:
    size = shard.stat().st_size
    os.truncate(shard, keep % size)
    opened = Shard(shard, layout)
    with pytest.raises(
        DamagedDataError, match=rf"has {keep % size} bytes, it was written with {size}: restore"
    ):
        opened.document(0)


def test_a_missing_shard_or_index_is_named(shard: Path, layout: TokenLayout) -> None:
    opened = Shard(shard, layout)
    assert len(opened) == 40
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"00000-000\.arrow' is missing, its index is there: restore"):
        opened.document(0)
    index_path(shard).unlink()
    with pytest.raises(FileNotFoundError, match=r"00000-000\.json', which belongs to .* is missing"):
        len(Shard(shard, layout))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: text.replace('"documents":40', '"documents":41'), "contradict each other"),
        (lambda text: text.replace('"start":[', '"start":[7,'), "contradict each other"),
        (lambda text: text.replace('"crc32":[', '"crc32":["x",'), "is damaged"),
        (lambda text: text.replace('"version":1', '"version":9'), "has version 9, this installation reads 1"),
        (lambda text: "[]", "is damaged"),
    ],
)
def test_a_broken_index_is_named(
    shard: Path, layout: TokenLayout, change: Callable[[str], str], message: str
) -> None:
    path = index_path(shard)
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    with pytest.raises(DamagedDataError, match=rf"00000-000\.json'.*{message}"):
        len(Shard(shard, layout))


def test_a_shard_with_right_checksums_but_other_columns_is_refused(
    tmp_path: Path, layout: TokenLayout
) -> None:
    batch = pa.record_batch([pa.array(["x"])], names=["id"])
    message = batch.serialize()
    path = tmp_path / "00000-000.arrow"
    path.write_bytes(message.to_pybytes())
    record = BatchRecord(0, message.size, zlib.crc32(message), documents=1, tokens=0)
    index_path(path).write_bytes(index_content(path.name, "", message.size, "", {}, [record]))
    with pytest.raises(DamagedDataError, match=r"record batch 0 .* is not what a prepared data set holds"):
        Shard(path, layout).document(0)


def test_a_pickled_shard_carries_no_data_and_reads_on(
    shard: Path, layout: TokenLayout, documents: list[EncodedDocument], as_plain: AsPlain
) -> None:
    opened = Shard(shard, layout)
    opened.document(3)
    content = pickle.dumps(opened)
    assert len(content) < 500
    assert as_plain(pickle.loads(content).document(3)) == as_plain(documents[3])
    opened.close()
    assert as_plain(opened.document(3)) == as_plain(documents[3])


def test_a_forked_process_reads_through_the_same_maps(
    shard: Path, layout: TokenLayout, documents: list[EncodedDocument], as_plain: AsPlain
) -> None:
    opened = Shard(shard, layout)
    opened.document(0)
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    process = context.Process(target=lambda: results.put([as_plain(opened.document(n)) for n in (0, 39)]))
    process.start()
    assert results.get(timeout=30) == [as_plain(documents[n]) for n in (0, 39)]
    process.join()


def test_a_document_that_cannot_be_stored_leaves_no_trace(
    tmp_path: Path, documents: list[EncodedDocument], layout: TokenLayout
) -> None:
    with ShardWriter(tmp_path, "00000", layout) as writer:
        writer.add("a", documents[1])
        with pytest.raises(TypeError, match="not JSON serializable"):
            writer.add("b", [*documents[2], ("series", {1, 2}, True)])
        writer.add("c \udcff", documents[3])  # the name of a file need not be text
    opened = Shard(writer.shards[0], layout)
    assert [opened.id(number) for number in range(len(opened))] == ["a", "c \\udcff"]
    assert opened.index.tokens == sum(map(len, texts_of([documents[1], documents[3]])))


def test_without_documents_there_is_no_shard(tmp_path: Path, layout: TokenLayout) -> None:
    assert write(tmp_path, [], layout) == [] and list(tmp_path.iterdir()) == []


def test_writing_takes_the_memory_of_a_record_batch_not_of_a_shard(
    tmp_path: Path, layout: TokenLayout
) -> None:
    def documents() -> Iterator[EncodedDocument]:
        for number in range(400):
            yield [("image", bytes([number % 256]) * 100_000, True)]

    tracemalloc.start()
    with ShardWriter(tmp_path, "00000", layout, max_shard_bytes=1 << 40) as writer:
        for number, document in enumerate(documents()):
            writer.add(str(number), document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert writer.shards[0].stat().st_size > 40_000_000 and peak < 6_000_000


WRITES_THEN_WAITS = """
import sys, time
from datamodules.prepared import ShardWriter, TokenLayout
folder, documents = sys.argv[1], int(sys.argv[2])
sizes = {"max_shard_bytes": 200_000, "batch_bytes": 50_000}
with ShardWriter(folder, "00003", TokenLayout(300, 10), **sizes) as writer:
    for number in range(documents):
        writer.add(str(number), [("image", bytes([number]) * 20_000, True)])
    print(len(writer.shards), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("written", [5, 24, 31])
def test_a_killed_writer_leaves_whole_shards_and_hidden_rests_that_the_next_one_removes(
    tmp_path: Path, written: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_THEN_WAITS, str(tmp_path), str(written)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    finished = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    names = {path.name for path in tmp_path.iterdir()}
    visible = {f"00003-{number:03d}{suffix}" for number in range(finished) for suffix in (".arrow", ".json")}
    assert finished == written // 12 and visible <= names
    assert names - visible == ({f".00003-{finished:03d}.arrow.partial"} if written % 12 else set())
    layout = TokenLayout(300, 10)
    images: list[EncodedDocument] = [[("image", bytes([number]) * 20_000, True)] for number in range(40)]
    opened = [Shard(tmp_path / name, layout) for name in sorted(visible) if name.endswith(".arrow")]
    read = [shard.document(number) for shard in opened for number in range(len(shard))]
    assert read == images[: 12 * finished]
    (tmp_path / "00002-000.arrow").touch()  # another task's
    write(tmp_path, images[:11], layout, "00003", max_shard_bytes=200_000, batch_bytes=50_000)
    assert {path.name for path in tmp_path.iterdir()} == {
        "00002-000.arrow",
        "00003-000.arrow",
        "00003-000.json",
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_with_a_clear_error_and_leaves_earlier_shards_whole(small_disk: Path) -> None:
    layout = TokenLayout(300, 10)
    sizes = {"max_shard_bytes": 300_000, "batch_bytes": 50_000}
    images: list[EncodedDocument] = [[("image", bytes([number]) * 20_000, True)] for number in range(100)]
    with (
        pytest.raises(
            OSError, match=r"cannot write '.*00000-00\d\.arrow' \(No space left.*make room"
        ) as caught,
        ShardWriter(small_disk, "00000", layout, **sizes) as writer,
    ):
        for number, document in enumerate(images):
            writer.add(str(number), document)
    assert caught.value.errno == errno.ENOSPC
    names = sorted(path.name for path in small_disk.iterdir())
    assert names == sorted([*(p.name for p in writer.shards), *(index_path(p).name for p in writer.shards)])
    assert len(writer.shards) >= 2
    opened = [Shard(path, layout) for path in writer.shards]
    read = [each.document(number) for each in opened for number in range(len(each))]
    assert read == images[: len(read)]
