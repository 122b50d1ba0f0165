"""Sources on real files, damaged ones included."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from datamodules.sources import JsonLines, TextFiles
from onn_lightning.modality import BadSampleError


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def caption(text: str) -> dict[str, Any]:
    return {"items": [{"modality": "text", "text": text}]}


def test_each_text_file_is_one_document_in_the_order_of_names(tmp_path: Path) -> None:
    for name, text in (("b.txt", "乙"), ("a.txt", "a\r\nb"), ("c.md", "no")):
        (tmp_path / name).write_bytes(text.encode())
    source = TextFiles(tmp_path)
    assert [source[i] for i in range(len(source))] == [[("text", "a\r\nb")], [("text", "乙")]]
    assert source.describe(1) == str(tmp_path / "b.txt")
    assert list(source.indices_with("text")) == [0, 1] and not list(source.indices_with("image"))
    assert len(TextFiles(tmp_path / "c.md")) == 1
    assert len(TextFiles(tmp_path, "*.*")) == 3


def test_a_missing_or_empty_text_folder_says_what_to_do(tmp_path: Path) -> None:
    source = TextFiles(tmp_path / "none")  # making it touches no disk
    with pytest.raises(FileNotFoundError, match=r"none' does not exist"):
        len(source)
    with pytest.raises(ValueError, match=r"matches '\*\.txt'"):
        len(TextFiles(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "holds no text"), (b" \n", "holds no text"), (b"ab\xff", "byte 2 is not valid UTF-8")],
)
def test_a_bad_text_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(BadSampleError, match=rf"bad\.txt: {message}"):
        TextFiles(tmp_path)[0]


def test_a_text_file_that_vanished_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    source = TextFiles(tmp_path)
    assert len(source) == 1
    (tmp_path / "a.txt").unlink()
    with pytest.raises(BadSampleError, match=r"a\.txt: cannot be read"):
        source[0]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_a_positive_number(tmp_path: Path, weight: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        TextFiles(tmp_path, weight=weight)


def test_a_line_is_an_interleaved_document(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "1.png").touch()
    items = [
        {"modality": "text", "text": "what is it?", "supervised": False},
        {"modality": "image", "path": "img/../img/1.png"},
        {"modality": "series", "value": [1.5, 2]},
    ]
    source = JsonLines(write_lines(tmp_path / "d.jsonl", {"items": items}))
    image = str(tmp_path / "img" / "1.png")
    assert source[0] == [("text", "what is it?", False), ("image", image, True), ("series", [1.5, 2], True)]


def test_lines_end_at_line_feeds_only_and_blank_ones_are_none(tmp_path: Path) -> None:
    odd = "a\x0b\x0c\x1c\x85\u2028\u2029b"
    path = tmp_path / "d.jsonl"
    line = json.dumps(caption(odd), ensure_ascii=False).replace("\\u000b", "\x0b")
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(caption("first")).encode() + b"\r\n\n\r\n" + line.encode())
    source = JsonLines(path)
    assert len(source) == 2
    assert source[0] == [("text", "first", True)]
    assert source.describe(1) == f"{path}:4"
    with pytest.raises(BadSampleError, match=r"d\.jsonl:4: is not valid JSON"):  # a bare VT is not JSON
        source[1]
    write_lines(path, caption(odd), caption("last"))
    source = JsonLines(path)
    assert [source[i][0][1] for i in range(len(source))] == [odd, "last"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"items": [', "is not valid JSON"),
        pytest.param(b'{"items": ' + b"[" * 100_000, "is not valid JSON", id="too deep"),
        pytest.param(b'{"items": ' + b"9" * 5000 + b"}", "is not valid JSON", id="too many digits"),
        (b'{"items": "\xff"}', "byte 11 is not valid UTF-8"),
        (b"[1, 2]", 'non-empty list "items"'),
        (b'{"items": []}', 'non-empty list "items"'),
        (b'{"items": [3]}', 'item 1: must be an object with a string "modality"'),
        (b'{"items": [{"text": "a"}]}', 'item 1: must be an object with a string "modality"'),
        (b'{"items": [{"modality": "text"}]}', r"item 1: needs one of .* has none"),
        (b'{"items": [{"modality": "text", "text": "a", "path": "b"}]}', r"has \['text', 'path'\]"),
        (b'{"items": [{"modality": "text", "text": 3}]}', '"text" must be a string, is int'),
        (b'{"items": [{"modality": "text", "text": "", "supervised": 0}]}', "must be true or false, is 0"),
        (b'{"items": [{"modality": "image", "path": "no.png"}]}', r"no\.png' does not exist"),
        (b'{"items": [{"modality": "image", "path": "/etc/passwd"}]}', "leaves"),
        (b'{"items": [{"modality": "image", "text": "/etc/passwd"}]}', 'names its file as "path"'),
        (b'{"items": [{"modality": "audio", "value": "/etc/passwd"}]}', 'names its file as "path"'),
        (b'{"items": [{"modality": "image", "path": "a/../../b.png"}]}', "leaves"),
        (b'{"items": [{"modality": "image", "path": "a\\u0000b"}]}', "leaves"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(caption("good")).encode() + b"\n" + line + b"\n")
    source = JsonLines(path)
    assert source[0] == [("text", "good", True)]
    with pytest.raises(BadSampleError, match=rf"d\.jsonl:2.*{message}"):
        source[1]


def test_media_are_found_below_another_root_when_one_is_given(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "1.png").touch()
    (tmp_path / "lists").mkdir()
    path = write_lines(tmp_path / "lists" / "d.jsonl", {"items": [{"modality": "image", "path": "1.png"}]})
    with pytest.raises(BadSampleError, match="does not exist"):
        JsonLines(path)[0]
    assert JsonLines(path, root=media)[0] == [("image", str(media / "1.png"), True)]


def test_a_missing_or_empty_json_lines_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl' does not exist"):
        len(JsonLines(tmp_path / "none.jsonl"))
    for content in (b"", b"\n\n"):
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=r"empty\.jsonl' is empty"):
            len(JsonLines(tmp_path / "empty.jsonl"))


def test_samples_of_a_modality_are_found_without_reading_documents(tmp_path: Path) -> None:
    fake = {"items": [{"modality": "text", "text": 'about "modality": "image"'}]}
    real = {"items": [{"path": "x.png", "modality": "image"}, {"modality": "text", "text": "x"}]}
    path = write_lines(tmp_path / "d.jsonl", fake, real, fake, real)
    assert list(JsonLines(path).indices_with("image")) == [1, 3]
    assert list(JsonLines(path).indices_with("text")) == [0, 1, 2, 3]


def test_a_line_of_ten_megabytes_is_one_document_and_others_cost_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    long = "字" * (10 * 1024 * 1024 // 3)
    with path.open("w", encoding="utf-8") as file:
        for text in ["first", long, *["x" * 1000] * 20_000, "last"]:
            file.write(json.dumps(caption(text), ensure_ascii=False) + "\n")
    assert os.path.getsize(path) > 30_000_000
    tracemalloc.start()
    source = JsonLines(path)
    assert len(source) == 20_003
    assert source[20_002][0][1] == "last"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000  # two chunks, never the corpus
    assert source[1][0][1] == long
