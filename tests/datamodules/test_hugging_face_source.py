"""Hugging Face data sets read while training, from disk alone."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from datamodules.audio import AudioModality
from datamodules.columns import Column
from datamodules.hugging_face import HuggingFaceSource
from datamodules.image import ImageModality
from datamodules.omni import OmniDataModule
from datamodules.text import TextModality
from onn_lightning.modality import BadSampleError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (16, 16), shade).save(stream, "PNG")
    return stream.getvalue()


def wav(number: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.sin(np.arange(8000) * 0.01 * (number + 1)), 16000, format="WAV")
    return stream.getvalue()


def save(folder: Path, **columns: tuple[Any, list[Any]]) -> str:
    """Write a data set; a column is (feature, values)."""
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    rows = {name: values for name, (_, values) in columns.items()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return str(folder)


TEXT = datasets.Value("string")
STORED = {"bytes": datasets.Value("binary"), "path": TEXT}  # as sounds lie on disk


def test_rows_are_documents_and_media_are_not_decoded(tmp_path: Path) -> None:
    path = save(
        tmp_path / "saved",
        image=(datasets.Image(), [{"bytes": png(n), "path": None} for n in range(5)]),
        sound=(STORED, [{"bytes": wav(n), "path": None} for n in range(5)]),
        caption=(TEXT, [f"shade {n}" for n in range(5)]),
        number=(datasets.Value("int64"), list(range(5))),
    )
    columns = [
        Column("image", "image", supervised=False),
        Column("caption"),
        Column("sound", "audio"),
        Column("number", "series"),
    ]
    source = HuggingFaceSource(path, columns=columns)
    assert len(source) == 5
    expected = [("image", png(3), False), ("text", "shade 3", True), ("audio", wav(3), True)]
    assert source[3] == [*expected, ("series", 3, True)]
    assert list(source.indices_with("audio")) == list(range(5)) and not list(source.indices_with("smell"))
    assert source.describe(3) == f"{path}: train#3"
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_it_trains_with_workers_and_with_the_real_modalities(tmp_path: Path) -> None:
    path = save(
        tmp_path / "saved",
        image=(datasets.Image(), [{"bytes": png(n), "path": None} for n in range(9)]),
        sound=(STORED, [{"bytes": wav(n), "path": None} for n in range(9)]),
        text=(TEXT, [f"shade {n}" for n in range(9)]),
    )
    columns = [Column("image", "image"), Column("sound", "audio"), Column("text")]
    source = HuggingFaceSource(path, columns=columns)
    module = OmniDataModule(
        [TextModality(max_words=50), ImageModality(patch_size=8), AudioModality()],
        {"all": source},
        row_length=128,
        rows_per_batch=1,
        num_workers=1,
        buffer_size=8,
    )
    module.setup("fit")
    for batch in islice(module.train_dataloader(), 3):
        assert {name for name, tokens in batch.modalities.items() if len(tokens.indices)} == {
            "text",
            "image",
            "audio",
        }
    assert module.bad_samples == {"train/all": 0}


def test_text_is_the_default_and_local_builders_work(tmp_path: Path) -> None:
    with (tmp_path / "lines.jsonl").open("w") as file:
        for number in range(4):
            file.write(json.dumps({"text": f"line {number}", "other": number}) + "\n")
    source = HuggingFaceSource("json", data_files=str(tmp_path / "lines.jsonl"))
    assert [source[n] for n in range(len(source))] == [[("text", f"line {n}", True)] for n in range(4)]


def test_a_media_folder_gives_paths_and_none_that_leave_it(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(7))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "seven"}) + "\n")
    columns = [Column("image", "image"), Column("text")]
    source = HuggingFaceSource(str(folder), columns=columns)
    (image, text) = source[0]
    assert Path(image[1]) == folder / "a.png" and text[1] == "seven"
    features = datasets.Features({"image": datasets.Image(), "text": TEXT})
    rows = {"image": [{"bytes": None, "path": "/etc/passwd"}], "text": ["stolen"]}
    stolen = tmp_path / "stolen.parquet"
    pq.write_table(datasets.Dataset.from_dict(rows, features=features).data.table, stolen)
    with pytest.raises(BadSampleError, match=r"train#0: path .* leaves"):
        HuggingFaceSource("parquet", data_files=str(stolen), columns=columns)[0]


def test_bad_rows_are_named(tmp_path: Path) -> None:
    path = save(
        tmp_path / "saved",
        text=(TEXT, ["good", None, " "]),
        image=(datasets.Image(), [None, None, {"bytes": png(1), "path": None}]),
    )
    columns = [Column("text"), Column("image", "image", optional=True)]
    source = HuggingFaceSource(path, columns=columns)
    assert source[0] == [("text", "good", True)]
    for row, message in ((1, "train#1: column 'text' is null"), (2, "train#2: column 'text' is blank")):
        with pytest.raises(BadSampleError, match=message):
            source[row]
    nothing = HuggingFaceSource(path, columns=[Column("image", "image", optional=True)])
    with pytest.raises(BadSampleError, match="all of its columns are empty"):
        nothing[0]
    numbers = save(tmp_path / "numbers", text=(datasets.Value("int64"), [3]))
    with pytest.raises(BadSampleError, match="'text' must be a string, is int"):
        HuggingFaceSource(numbers)[0]


def test_a_damaged_row_is_a_bad_sample(tmp_path: Path) -> None:
    path = save(tmp_path / "saved", text=(TEXT, ["first", "x" * 50, "last"]))
    (file,) = Path(path).glob("*.arrow")
    file.write_bytes(file.read_bytes().replace(b"x" * 50, b"x" * 49 + b"\xff"))
    source = HuggingFaceSource(path)
    assert source[2] == [("text", "last", True)]
    with pytest.raises(BadSampleError, match=r"train#1: cannot be read \(.*UTF8"):
        source[1]


def test_what_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    path = save(tmp_path / "saved", text=(TEXT, ["a"]))
    with pytest.raises(ValueError, match=r"no column \['url'\]; set `columns` out of \['text'\]"):
        len(HuggingFaceSource(path, columns=[Column("url")]))
    with pytest.raises(ValueError, match="cannot be loaded"):
        len(HuggingFaceSource(save(tmp_path / "empty", text=(TEXT, []))))
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "one.parquet")
    with pytest.raises(ValueError, match="corresponds to no data"):
        len(HuggingFaceSource("parquet", data_files=str(tmp_path / "one.parquet"), split="train[:0]"))
    with pytest.raises(ValueError, match="columns is empty"):
        HuggingFaceSource(path, columns=[])
    with pytest.raises(ValueError, match="'pandas' reads pickles"):
        HuggingFaceSource("pandas", data_files="x.pkl")


def test_the_library_is_imported_only_when_a_data_set_is_read() -> None:
    code = (
        "import sys; from datamodules.hugging_face import HuggingFaceSource; HuggingFaceSource('x');"
        "sys.exit(bool({'datasets', 'datatrove', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
