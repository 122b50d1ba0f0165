"""Hugging Face data sets, from disk alone."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reading import REPOSITORY, bad_samples, items, read_documents, read_samples

from datamodules.prepare.readers import (
    BadSample,
    Column,
    CorpusChangedError,
    HuggingFaceReader,
    JsonLinesReader,
)

COLUMNS = [Column("image", "image"), Column("text")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), shade).save(stream, "PNG")
    return stream.getvalue()


def pictures(count: int) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": png(number), "path": None} for number in range(count)]
    return datasets.Dataset.from_dict(
        {"image": images, "text": [f"shade {number}" for number in range(count)]}, features=features
    )


@pytest.mark.parametrize("unit_bytes", [1, 300, 1 << 20])
def test_rows_of_a_saved_data_set_keep_the_bytes_they_were_stored_as(tmp_path: Path, unit_bytes: int) -> None:
    pictures(10).save_to_disk(tmp_path / "saved", num_shards=3)
    reader = HuggingFaceReader(str(tmp_path / "saved"), columns=COLUMNS, unit_bytes=unit_bytes)
    assert (len(list(reader.plan())) == 1) is (unit_bytes > 1000)
    documents = read_documents(reader)
    assert [each.id for each in documents] == [f"s: train#{number}" for number in range(10)]
    expected = [[("image", png(number)), ("text", f"shade {number}")] for number in range(10)]
    assert [items(each) for each in documents] == expected


def test_a_split_of_a_saved_dictionary_is_chosen_by_name(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": pictures(4), "test": pictures(2)})
    both.save_to_disk(tmp_path / "saved")
    assert len(read_documents(HuggingFaceReader(str(tmp_path / "saved"), split="test", columns=COLUMNS))) == 2
    with pytest.raises(ValueError, match="split 'none', cannot be loaded"):
        list(HuggingFaceReader(str(tmp_path / "saved"), split="none").plan())


@pytest.mark.parametrize("streaming", [False, True])
def test_local_builders_read_files_also_as_a_stream(tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pictures(6).to_parquet(folder / "a.parquet")
    pictures(3).to_parquet(folder / "b.parquet")
    options: dict[str, Any] = {"columns": COLUMNS, "streaming": streaming}
    by_files = HuggingFaceReader("parquet", data_files=[str(folder / "a.parquet")], **options)
    assert [items(each)[0] for each in read_documents(by_files)] == [("image", png(n)) for n in range(6)]
    by_folder = HuggingFaceReader("parquet", data_dir=str(folder), **options)
    documents = read_documents(by_folder)
    assert len({each.id for each in documents}) == 9
    assert len(list(by_folder.plan())) == (2 if streaming else 1)


def test_an_image_folder_is_read_and_paths_out_of_it_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(png(7))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "sub/a.png", "text": "seven"}) + "\n")
    (document,) = read_documents(HuggingFaceReader(str(folder), columns=COLUMNS))
    assert items(document) == [("image", png(7)), ("text", "seven")]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": None, "path": "/etc/passwd"}], "text": ["stolen"]}
    path = tmp_path / "a.parquet"
    pq.write_table(datasets.Dataset.from_dict(rows, features=features).data.table, path)
    reader = HuggingFaceReader("parquet", data_files=str(path), columns=COLUMNS)
    assert bad_samples(reader) == [("s: train#0", "unsafe path")]


def test_bad_rows_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    texts = ["good", None, " ", "a\0", "fine"]
    datasets.Dataset.from_dict({"text": texts, "other": [1] * 5}).save_to_disk(tmp_path / "saved")
    samples = read_samples(HuggingFaceReader(str(tmp_path / "saved")))
    kinds = [each.kind if isinstance(each, BadSample) else each.text for each in samples]
    assert kinds == ["good", "missing column", "missing column", "NUL byte", "fine"]


def test_a_saved_data_set_with_flipped_bytes_gives_bad_rows(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["first", "x" * 50, "last"]}).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"x" * 50, b"x" * 49 + b"\xff"))
    assert bad_samples(HuggingFaceReader(str(tmp_path / "saved"))) == [("s: train#1", "invalid UTF-8")]
    lengths = (5).to_bytes(4, "little") + (55).to_bytes(4, "little")
    path.write_bytes(data.replace(lengths, (5).to_bytes(4, "little") + (1 << 30).to_bytes(4, "little")))
    reader = HuggingFaceReader(str(tmp_path / "saved"))
    assert {kind for _, kind in bad_samples(reader)} == {"damaged row"}


def test_what_cannot_be_loaded_is_a_clear_error(tmp_path: Path) -> None:
    pictures(2).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"no column \['text', 'url'\]|no column \['url'\]"):
        list(HuggingFaceReader(str(tmp_path / "saved"), columns=[Column("url")]).plan())
    (path,) = (tmp_path / "saved").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        list(HuggingFaceReader(str(tmp_path / "saved")).plan())
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match="JsonLinesReader"):
        list(HuggingFaceReader("json", data_files=str(tmp_path / "bad.jsonl")).plan())
    assert len(read_samples(JsonLinesReader(tmp_path / "bad.jsonl"))) == 2


def test_a_data_set_that_changes_between_plan_and_read_is_refused(tmp_path: Path) -> None:
    pictures(5).save_to_disk(tmp_path / "saved")
    (unit,) = HuggingFaceReader(str(tmp_path / "saved"), columns=COLUMNS).plan()
    pictures(4).save_to_disk(tmp_path / "saved")
    with pytest.raises(CorpusChangedError, match="has changed since the preparation was planned"):
        list(HuggingFaceReader(str(tmp_path / "saved"), columns=COLUMNS).read(unit, "s"))


def test_scripts_and_pickles_of_a_data_set_are_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    with pytest.raises((ValueError, OSError, RuntimeError)):
        list(HuggingFaceReader(str(folder)).plan())
    assert not (tmp_path / "harm").exists()
    (folder / "data.pkl").write_bytes(pickle.dumps({"text": ["a"]}))
    with pytest.raises(ValueError, match="'pandas' reads pickles"):
        HuggingFaceReader("pandas", data_files=str(folder / "data.pkl"))


def test_a_reader_travels_to_other_processes_without_its_data_set(tmp_path: Path) -> None:
    pictures(200).save_to_disk(tmp_path / "saved")
    reader = HuggingFaceReader(str(tmp_path / "saved"), columns=COLUMNS)
    (unit,) = reader.plan()
    travelled = pickle.dumps(reader)
    assert len(travelled) < 2000
    assert len(list(pickle.loads(travelled).read(unit, "s"))) == 200


def test_the_library_is_imported_by_reading_alone() -> None:
    code = (
        "import sys; from datamodules.prepare.readers import HuggingFaceReader as R; R('x'); "
        "sys.exit('datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
