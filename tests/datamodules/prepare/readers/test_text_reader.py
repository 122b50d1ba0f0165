"""Folders of text files, and what lies about in folders beside them."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path

import pytest
import zstandard
from reading import bad_samples, read_documents, read_samples, read_texts

from datamodules.prepare.readers import BadSample, CorpusChangedError, Limits, TextReader


def test_each_file_is_one_document_in_the_order_of_folders_and_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in (("b/1.txt", "3"), ("z.md", "2"), ("a.txt", "1"), ("no.rst", "-"), (".git/x.txt", "-")):
        (tmp_path / name).write_text(text)
    documents = read_documents(TextReader(tmp_path))
    assert [(each.id, each.text) for each in documents] == [
        ("s: a.txt", "1"),
        ("s: z.md", "2"),
        ("s: b/1.txt", "3"),
    ]
    assert documents[0].metadata["source"] == "s"


def test_compressed_files_are_read_and_text_is_kept_as_it_is(tmp_path: Path) -> None:
    odd = "a\r\nb\x85c\x0b\x1c\u2028\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + odd.encode())
    (tmp_path / "b.txt.gz").write_bytes(
        gzip.compress(odd.encode(), mtime=0) + gzip.compress(b"2", mtime=0) + bytes(100)
    )
    frames = [zstandard.compress(part) for part in (odd.encode(), b"2")]
    (tmp_path / "c.md.zst").write_bytes(b"".join(frames))
    assert read_texts(TextReader(tmp_path)) == [odd, odd + "2", odd + "2"]
    assert read_texts(TextReader(tmp_path / "c.md.zst")) == [odd + "2"]


def test_patterns_choose_files_by_name_and_folder(tmp_path: Path) -> None:
    for name in ("en/a.TXT", "en/b.log", "de/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read_texts(TextReader(tmp_path, ["en/*"])) == ["en/a.TXT", "en/b.log"]
    assert read_texts(TextReader(tmp_path, ["*.txt"])) == ["de/a.txt", "en/a.TXT"]
    with pytest.raises(ValueError, match=r"no file in .* matches \['\*\.rst'\]"):
        list(TextReader(tmp_path, ["*.rst"]).plan())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(TextReader(tmp_path / "none").plan())


@pytest.mark.parametrize("unit_bytes", [1, 7, 25, 1000])
def test_units_of_any_size_give_the_same_documents(tmp_path: Path, unit_bytes: int) -> None:
    for number in range(20):
        folder = tmp_path / f"f{number % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text("x" * (number + 1))
    whole = [(each.id, each.text) for each in read_documents(TextReader(tmp_path))]
    reader = TextReader(tmp_path, unit_bytes=unit_bytes)
    assert [(each.id, each.text) for each in read_documents(reader)] == whole
    assert len({each for each, _ in whole}) == 20
    assert sum(unit.size for unit in reader.plan()) == sum(range(1, 21))


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.txt", b"", "empty file"),
        ("a.txt.gz", b"", "empty file"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "empty file"),
        ("a.txt", b" \n\t", "no text"),
        ("a.txt", b"ab\xff", "invalid UTF-8"),
        ("a.txt", "ab".encode("utf-16"), "invalid UTF-8"),
        ("a.txt", b"a\0b", "NUL byte"),
        ("a.txt", gzip.compress(b"text", mtime=0), "misnamed file"),
        ("a.txt", zstandard.compress(b"text"), "misnamed file"),
        ("a.txt.gz", b"text", "misnamed file"),
        ("a.txt.gz", zstandard.compress(b"text"), "misnamed file"),
        ("a.txt.zst", gzip.compress(b"text", mtime=0), "misnamed file"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "truncated file"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-8] + bytes(8), "damaged file"),
        ("a.txt.gz", gzip.compress(b"text", mtime=0) + b"rest", "damaged file"),
        ("a.txt.zst", zstandard.compress(os.urandom(999))[:-3], "truncated file"),
        ("a.txt.zst", zstandard.compress(b"text" * 99)[:6] + b"\xff" * 20, "damaged file"),
        ("a.txt", b"x" * 2001, "text too long"),
        ("a.txt", "字".encode() * 667, "text too long"),
        ("a.txt.gz", gzip.compress(b"x" * 2001, mtime=0), "text too long"),
    ],
)
def test_a_bad_file_is_named_and_the_others_are_read(
    tmp_path: Path, name: str, data: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "b.txt").write_text("good")
    reader = TextReader(tmp_path, limits=Limits(text_bytes=2000))
    assert bad_samples(reader) == [(f"s: {name}", kind)]
    assert read_texts(reader) == ["good"]


def test_pipes_sockets_devices_and_dangling_links_are_named_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo(tmp_path / "a.txt")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/zero")
    (tmp_path / "d.txt").symlink_to("nowhere")
    (tmp_path / "e.txt").symlink_to("e.txt")
    (tmp_path / "f.txt").symlink_to("g.text")
    (tmp_path / "g.text").write_text("linked")
    reader = TextReader(tmp_path)
    assert bad_samples(reader) == [(f"s: {name}.txt", "special file") for name in "abcde"]
    assert read_texts(reader) == ["linked"]


def test_links_between_folders_are_followed_once_and_loops_are_named(tmp_path: Path) -> None:
    corpus, outside = tmp_path / "corpus", tmp_path / "outside"
    for folder in (corpus / "sub", outside):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    (corpus / "elsewhere").symlink_to(outside)
    (corpus / "elsewhere_again").symlink_to(outside)
    (corpus / "sub" / "loop").symlink_to(corpus)
    (corpus / "up").symlink_to(tmp_path)
    (outside / "back").symlink_to(corpus)
    reader = TextReader(corpus)
    assert read_texts(reader) == ["outside", "sub"]
    assert sorted(bad_samples(reader)) == [
        ("s: elsewhere/back", "special file"),
        ("s: elsewhere_again", "special file"),
        ("s: sub/loop", "special file"),
        ("s: up", "special file"),
    ]


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("a")
    with pytest.raises(ValueError, match=r"name of '\\xff\.txt' is not valid UTF-8: rename"):
        list(TextReader(tmp_path).plan())


def test_a_corpus_that_changes_between_plan_and_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    (tmp_path / "b.txt").write_text("b")
    reader = TextReader(tmp_path)
    (unit,) = reader.plan()
    assert len(list(reader.read(unit, "s"))) == 2
    os.utime(path, ns=(1, 10**18 * 3))
    with pytest.raises(CorpusChangedError, match="has changed or vanished since the preparation was planned"):
        list(reader.read(unit, "s"))
    path.unlink()
    with pytest.raises(CorpusChangedError, match="start the preparation anew"):
        list(TextReader(tmp_path).read(unit, "s"))


def test_a_message_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    (sample,) = read_samples(TextReader(tmp_path))
    assert isinstance(sample, BadSample)
    assert sample.message.startswith("byte 2 is not valid UTF-8") and "iconv" in sample.message
