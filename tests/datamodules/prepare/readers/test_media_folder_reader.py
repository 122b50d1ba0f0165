"""Folders of images and sounds with their captions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from reading import bad_samples, items, read_documents, read_samples, read_texts

from datamodules.prepare.document import unpack
from datamodules.prepare.readers import (
    BadSample,
    CorpusChangedError,
    Limits,
    MediaFolderReader,
    SampleLayout,
)


def write_files(folder: Path, files: dict[str, bytes | str | dict[str, Any]]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def test_files_of_one_name_are_one_document_the_caption_last(tmp_path: Path) -> None:
    files = {
        "b.wav": b"wav",
        "b.json": {"caption": "in json", "license": "CC0"},
        "a.b.PNG": b"png",
        "a.b.txt": "in txt",
        "a.b.json": {"caption": "not this"},
        "sub/c.jpg": b"jpg",
        "sub/c.flac": b"flac",
        "sub/c.txt": "both",
    }
    documents = read_documents(MediaFolderReader(write_files(tmp_path, files)))
    assert [(each.id, items(each)) for each in documents] == [
        ("s: a.b", [("image", b"png"), ("text", "in txt")]),
        ("s: b", [("audio", b"wav"), ("text", "in json")]),
        ("s: sub/c", [("image", b"jpg"), ("audio", b"flac"), ("text", "both")]),
    ]
    assert documents[0].media[0].id == "a.b.PNG"


def test_order_context_and_suffixes_are_the_layouts(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": b"png", "a.csv": b"1,2", "a.txt": "caption"})
    layout = SampleLayout(order=["text", "series"], context=["text"], suffixes={"series": [".csv"]})
    (document,) = read_documents(MediaFolderReader(tmp_path, layout))
    assert items(document) == [("text", "caption"), ("series", b"1,2")]
    assert [item.supervised for item in unpack(document)] == [False, True]
    with pytest.raises(ValueError, match=r"order has \['video'\]"):
        SampleLayout(order=["video"])
    with pytest.raises(ValueError, match=r"context names \['audio'\]"):
        SampleLayout(order=["image"], context=["audio"])


def test_a_record_with_items_interleaves_the_files_of_its_sample(tmp_path: Path) -> None:
    record = {
        "items": [
            {"modality": "text", "text": "before"},
            {"modality": "image", "path": "a.png"},
            {"modality": "text", "text": "after"},
        ]
    }
    write_files(tmp_path, {"a.png": b"png", "a.json": record, "b.png": b"other"})
    for name, path in (("c.json", "b.png"), ("d.json", "../b.png")):  # not of the same sample
        write_files(tmp_path, {name: {"items": [{"modality": "image", "path": path}]}})
    samples = read_samples(MediaFolderReader(tmp_path, SampleLayout(require_caption=False)))
    assert not isinstance(samples[0], BadSample)
    assert items(samples[0]) == [("text", "before"), ("image", b"png"), ("text", "after")]
    kinds = [each.kind for each in samples if isinstance(each, BadSample)]
    assert kinds == ["missing media", "missing media"]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"a.txt": "alone"}, "caption without media"),
        ({"a.json": {"caption": "alone"}}, "caption without media"),
        ({"a.png": b"alone"}, "media without caption"),
        ({"a.png": b"png", "a.json": {"width": 3}}, "media without caption"),
        ({"a.png": b"png", "a.txt": " \n"}, "empty caption"),
        ({"a.png": b"png", "a.txt": b"\xff"}, "invalid UTF-8"),
        ({"a.png": b"png", "a.txt": b"x\0"}, "NUL byte"),
        ({"a.png": b"png", "a.txt": b"x" * 1001}, "text too long"),
        ({"a.png": b"png", "a.json": b"{"}, "broken JSON"),
        ({"a.png": b"png", "a.json": b"[]"}, "malformed record"),
        ({"a.png": b"", "a.txt": "caption"}, "unusable media"),
        ({"a.png": bytes(2001), "a.txt": "caption"}, "media too large"),
        ({"a.png": bytes(1500), "a.wav": bytes(501), "a.txt": "caption"}, "media too large"),
        ({"a.eps": b"%!PS", "a.txt": "caption"}, "unlisted format"),
        ({"a.eps": b"%!PS"}, "unlisted format"),
        ({"a.pkl": b"cos\nsystem\n", "a.txt": "caption"}, "unlisted format"),
    ],
)
def test_a_bad_sample_is_named_and_the_others_are_read(
    tmp_path: Path, files: dict[str, Any], kind: str
) -> None:
    write_files(tmp_path, files | {"b.png": b"png", "b.txt": "good"})
    reader = MediaFolderReader(tmp_path, limits=Limits(text_bytes=1000, media_bytes=2000))
    assert bad_samples(reader) == [("s: a", kind)]
    assert read_texts(reader) == ["good"]


def test_media_without_captions_are_documents_where_none_is_required(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": b"1", "b.png": b"2", "b.txt": "caption"})
    documents = read_documents(MediaFolderReader(tmp_path, SampleLayout(require_caption=False)))
    assert [items(each) for each in documents] == [[("image", b"1")], [("image", b"2"), ("text", "caption")]]


def test_a_pipe_in_the_place_of_an_image_is_not_opened(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": "caption", "b.png": b"png", "b.txt": "good"})
    os.mkfifo(tmp_path / "a.png")
    assert bad_samples(MediaFolderReader(tmp_path)) == [("s: a", "special file")]


@pytest.mark.parametrize("unit_bytes", [1, 10, 1000])
def test_units_of_any_size_give_the_same_documents(tmp_path: Path, unit_bytes: int) -> None:
    for number in range(12):
        write_files(tmp_path, {f"{number}.png": b"png" * (number + 1), f"{number}.txt": str(number)})
    whole = read_samples(MediaFolderReader(tmp_path))
    assert read_samples(MediaFolderReader(tmp_path, unit_bytes=unit_bytes)) == whole and len(whole) == 12


def test_a_file_that_appears_between_plan_and_read_is_refused(tmp_path: Path) -> None:
    reader = MediaFolderReader(write_files(tmp_path, {"b.png": b"png", "b.txt": "good"}))
    (unit,) = reader.plan()
    write_files(tmp_path, {"a.png": b"png", "a.txt": "new"})
    with pytest.raises(CorpusChangedError, match="has changed or vanished"):
        list(MediaFolderReader(tmp_path).read(unit, "s"))
