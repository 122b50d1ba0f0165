"""Readers as a config chooses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from datamodules.prepare.readers import (
    Column,
    JsonLinesReader,
    Limits,
    Reader,
    SampleLayout,
    TarReader,
)

CONFIG = """
sources:
  web:
    class_path: datamodules.prepare.readers.JsonLinesReader
    init_args:
      path: nowhere/web
      columns: [{name: question, supervised: false}, {name: picture, modality: image, optional: true}]
      limits: {text_bytes: 100}
  shards:
    class_path: datamodules.prepare.readers.TarReader
    init_args: {path: nowhere/shards, layout: {order: [text, image], context: [text]}}
  books: {class_path: datamodules.prepare.readers.TextReader, init_args: {path: nowhere/books}}
  tables: {class_path: datamodules.prepare.readers.ParquetReader, init_args: {path: nowhere/tables}}
  pictures: {class_path: datamodules.prepare.readers.MediaFolderReader, init_args: {path: nowhere/pictures}}
  hub:
    class_path: datamodules.prepare.readers.HuggingFaceReader
    init_args: {path: someone/something, split: "train[:1%]", streaming: true}
"""


def test_a_config_makes_readers_without_touching_the_disk_and_survives_being_printed(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--sources", type=dict[str, Reader])
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    for _ in range(2):
        parsed = parser.parse_args(["--config", str(path)])
        sources = parser.instantiate(parsed).sources
        web, shards = sources["web"], sources["shards"]
        assert isinstance(web, JsonLinesReader) and isinstance(shards, TarReader)
        assert web.columns == [
            Column("question", supervised=False),
            Column("picture", "image", optional=True),
        ]
        assert web.limits == Limits(text_bytes=100)
        assert shards.layout.order == ["text", "image"] and shards.layout.context == ["text"]
        assert len(sources) == 6
        path.write_text(parser.dump(parsed))


def test_nonsense_in_a_config_is_refused_when_the_reader_is_made() -> None:
    with pytest.raises(ValueError, match="limits: expansion is 0"):
        Limits(expansion=0)
    with pytest.raises(ValueError, match="unit_bytes is 0"):
        JsonLinesReader("nowhere", unit_bytes=0)
    with pytest.raises(ValueError, match="order has no modality"):
        SampleLayout(order=[])
