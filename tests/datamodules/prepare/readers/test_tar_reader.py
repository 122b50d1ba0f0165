"""Tar shards: samples, refused members, damage, bombs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from reading import bad_samples, grown_megabytes, items, read_documents, read_samples, read_texts

from datamodules.prepare.readers import BadSample, Limits, SampleLayout, TarReader


def tar_of(*members: tuple[str, bytes | str] | tarfile.TarInfo, layout: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=layout) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            data = member[1].encode() if isinstance(member[1], str) else member[1]
            info = tarfile.TarInfo(member[0])
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = ("z.png", b"png"), ("z.txt", "good")


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.zst"])
def test_members_of_one_key_are_one_document(tmp_path: Path, layout: int, suffix: str) -> None:
    data = tar_of(
        special("d.1", tarfile.DIRTYPE),
        ("./d.1/000.txt", "one"),
        ("./d.1/000.png", b"png"),
        ("./d.1/000.cls", "7"),
        ("d.1/001.seg.png", bytes(700)),
        ("d.1/001.txt", "字"),
        ("d.1/._002.png", b"hidden"),
        (f"{'long' * 24}/{'x' * 80}.wav", b"wav"),
        (f"{'long' * 24}/{'x' * 80}.json", json.dumps({"caption": "long"})),
        layout=layout,
    )
    pack = gzip.compress if suffix.endswith("gz") else zstandard.compress if suffix.endswith("zst") else bytes
    (tmp_path / f"a.{suffix}").write_bytes(pack(data))
    documents = read_documents(TarReader(tmp_path))
    assert [items(each) for each in documents] == [
        [("image", b"png"), ("text", "one")],
        [("image", bytes(700)), ("text", "字")],
        [("audio", b"wav"), ("text", "long")],
    ]
    assert documents[0].id == f"s: a.{suffix}@512 d.1/000"
    assert documents[0].media[0].id == "000.png"


def test_a_record_interleaves_many_media_of_one_key(tmp_path: Path) -> None:
    record = {"items": [{"modality": "image", "path": "0.b.png"}, {"modality": "image", "path": "0.a.png"}]}
    data = tar_of(("0.a.png", b"a"), ("0.b.png", b"b"), ("0.json", json.dumps(record)), ("1.png", b"1"))
    (tmp_path / "a.tar").write_bytes(data)
    documents = read_documents(TarReader(tmp_path, SampleLayout(require_caption=False)))
    assert [items(each) for each in documents] == [[("image", b"b"), ("image", b"a")], [("image", b"1")]]


def test_keys_that_come_again_are_documents_with_ids_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(*GOOD, ("y.png", b"png"), ("y.txt", "y"), *GOOD))
    documents = read_documents(TarReader(tmp_path))
    assert [each.text for each in documents] == ["good", "y", "good"]
    assert len({each.id for each in documents}) == 3


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        (("../a.txt", "x"), "unsafe tar member"),
        (("a/../../a.txt", "x"), "unsafe tar member"),
        (("/etc/a.txt", "x"), "unsafe tar member"),
        (("C:\\a.txt", "x"), "unsafe tar member"),
        (("..\\a.txt", "x"), "unsafe tar member"),
        ((os.fsdecode(b"\xff.txt"), "x"), "unsafe tar member"),
        (("x" * 2000 + ".txt", "x"), "unsafe tar member"),
        (special("a.txt", tarfile.SYMTYPE, "/etc/passwd"), "tar member is a link"),
        (special("a.txt", tarfile.LNKTYPE, "z.txt"), "tar member is a link"),
        (special("a.txt", tarfile.CHRTYPE), "tar member is no file"),
        (special("a.txt", tarfile.BLKTYPE), "tar member is no file"),
        (special("a.txt", tarfile.FIFOTYPE), "tar member is no file"),
        (special("a.txt", tarfile.GNUTYPE_SPARSE), "tar member is no file"),
    ],
)
@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_that_could_do_harm_are_refused_and_the_others_are_read(
    tmp_path: Path, member: Any, kind: str, layout: int
) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(member, *GOOD, layout=layout))
    reader = TarReader(tmp_path)
    ((where, found),) = bad_samples(reader)
    assert found == kind and where.startswith("s: a.tar@")
    assert read_texts(reader) == ["good"]


class Harm:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "pth", "PT"])
def test_pickles_are_named_and_never_unpickled(tmp_path: Path, suffix: str) -> None:
    data = tar_of(
        ("z.png", b"png"), (f"z.{suffix}", pickle.dumps(Harm(tmp_path / "harm"))), ("z.txt", "good")
    )
    (tmp_path / "a.tar").write_bytes(data)
    reader = TarReader(tmp_path)
    ((where, kind),) = bad_samples(reader)
    assert kind == "pickle in tar" and where.endswith(f" z.{suffix}")
    assert read_texts(reader) == ["good"]
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ([("a.png", b"1")], "media without caption"),
        ([("a.txt", "1")], "caption without media"),
        ([("a.png", b"1"), ("a.png", b"2"), ("a.txt", "x")], "duplicate member"),
        ([("a.png", bytes(2001)), ("a.txt", "x")], "media too large"),
        ([("a.png", bytes(1000)), ("a.wav", bytes(1001)), ("a.txt", "x")], "media too large"),
        ([("a.png", b"1"), ("a.txt", "x" * 1001)], "text too long"),
        ([("a.png", b"1"), ("a.txt", b"\xff")], "invalid UTF-8"),
        ([("a.png", b""), ("a.txt", "x")], "unusable media"),
        ([("a.png", b"1"), ("a.json", b"{")], "broken JSON"),
    ],
)
def test_a_bad_sample_is_named_and_the_others_are_read(tmp_path: Path, members: Any, kind: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(*members, *GOOD))
    reader = TarReader(tmp_path, limits=Limits(text_bytes=1000, media_bytes=2000))
    assert bad_samples(reader) == [("s: a.tar@0 a", kind)]
    assert read_texts(reader) == ["good"]


def shard(samples: int) -> bytes:
    members = []
    for number in range(samples):
        members += [(f"{number}.png", os.urandom(600)), (f"{number}.txt", str(number))]
    return tar_of(*members)


SAMPLE_BYTES = 4 * 512 + 512  # two headers, two blocks of image, one of caption


@pytest.mark.parametrize(
    ("cut", "documents"),
    # A header that is cut leaves open whether the document before it was complete.
    [(2 * SAMPLE_BYTES + 700, 2), (2 * SAMPLE_BYTES + 100, 1), (3 * SAMPLE_BYTES, 3), (300, 0)],
)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.zst"])
def test_documents_before_the_place_where_an_archive_is_cut_are_kept(
    tmp_path: Path, cut: int, documents: int, suffix: str
) -> None:
    pack = {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": zstandard.compress}[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(pack(shard(5)[:cut]))
    (tmp_path / "b.tar").write_bytes(tar_of(*GOOD))
    reader = TarReader(tmp_path)
    assert read_texts(reader) == [*map(str, range(documents)), "good"]
    assert bad_samples(reader) == [(f"s: a.{suffix}", "truncated file")]


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
def test_documents_before_the_end_of_cut_compressed_data_are_kept(tmp_path: Path, suffix: str) -> None:
    pack = {"tar.gz": gzip.compress, "tar.zst": zstandard.compress}[suffix]
    packed = pack(shard(500))
    (tmp_path / f"a.{suffix}").write_bytes(packed[: len(packed) * 3 // 4])
    reader = TarReader(tmp_path)
    texts = read_texts(reader)
    assert texts == [str(number) for number in range(len(texts))] and len(texts) > 200
    assert bad_samples(reader) == [(f"s: a.{suffix}", "truncated file")]


def test_a_damaged_header_ends_the_archive_and_is_named(tmp_path: Path) -> None:
    data = bytearray(shard(5))
    data[2 * SAMPLE_BYTES + 10] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    reader = TarReader(tmp_path)
    assert read_texts(reader) == ["0"]  # whether sample 1 is complete, only the lost header could tell
    assert bad_samples(reader) == [("s: a.tar", "damaged file")]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.tar", b"", "empty file"),
        ("a.tar", bytes(10240), "empty file"),
        ("a.tar", b"no archive" * 100, "damaged file"),
        ("a.tar", gzip.compress(tar_of(*GOOD), mtime=0), "misnamed file"),
        ("a.tar.gz", tar_of(*GOOD), "misnamed file"),
        ("a.tar.zst", gzip.compress(tar_of(*GOOD), mtime=0), "misnamed file"),
    ],
)
def test_what_is_no_archive_of_its_kind_is_named(tmp_path: Path, name: str, data: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert bad_samples(TarReader(tmp_path)) == [(f"s: {name}", kind)]


def test_archives_written_one_after_the_other_are_not_lost_silently(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(*GOOD) + tar_of(*GOOD))
    document, bad = read_samples(TarReader(tmp_path))
    assert not isinstance(document, BadSample) and document.text == "good"
    assert isinstance(bad, BadSample) and "more data after its end" in bad.message


def test_headers_of_any_claimed_size_cost_no_memory(tmp_path: Path) -> None:
    for kind, name in ((tarfile.XHDTYPE, "x"), (tarfile.GNUTYPE_LONGNAME, "l"), (tarfile.XGLTYPE, "g")):
        info = special(name, kind)
        info.size = 1 << 28
        with (tmp_path / f"{name}.tar").open("wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate(512 + (1 << 28))
            file.seek(0, 2)
            file.write(tar_of(*GOOD))
    code = (
        f"reader = TarReader({str(tmp_path)!r})\n"
        "samples = [each for unit in reader.plan() for each in reader.read(unit, 's')]\n"
        "assert [getattr(each, 'kind', None) or each.text for each in samples] == "
        "['good', 'damaged file', 'damaged file'], samples"
    )
    assert grown_megabytes(code) < 20


def test_a_bomb_in_a_compressed_archive_is_stopped_in_constant_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("b.png")
    header.size = 1 << 36
    start = zstandard.compress(tar_of(*GOOD)[: 4 * 512] + header.tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "a.tar.zst").write_bytes(start + zstandard.compress(bytes(1 << 26)) * 1000)
    code = (
        f"reader = TarReader({str(tmp_path)!r})\n"
        "samples = [each for unit in reader.plan() for each in reader.read(unit, 's')]\n"
        "assert [each.kind for each in samples[1:]] == ['expands too much'], samples"
    )
    assert grown_megabytes(code) < 100


def test_a_large_shard_is_read_in_constant_memory(tmp_path: Path) -> None:
    image = os.urandom(100_000)
    sample = tar_of(("0.png", image), ("0.txt", "caption"), ("1.png", image), ("1.txt", "x"))
    body = sample[: -(-len(sample) // 512) * 512].rstrip(b"\0")
    body += bytes(-len(body) % 512)
    with (tmp_path / "a.tar").open("wb") as file:
        for _ in range(1000):
            file.write(body)
        file.write(bytes(1024))
    code = (
        f"reader = TarReader({str(tmp_path)!r})\n"
        "assert sum(1 for unit in reader.plan() for _ in reader.read(unit, 's')) == 2000"
    )
    assert grown_megabytes(code) < 20
