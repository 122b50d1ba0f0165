"""Raw corpora, one file a kind; chosen by `class_path` in a config's `sources`.

| class | corpus | one document is |
|---|---|---|
| `TextReader` | folders of .txt and .md | a file |
| `JsonLinesReader` | .jsonl, flat or with `items` | a line |
| `ParquetReader` | .parquet | a row |
| `MediaFolderReader` | images and sounds with captions beside them | the files of one name |
| `TarReader` | tar shards of the same | the members of one key |
| `HuggingFaceReader` | whatever `datasets` loads | a row |
"""

from datamodules.prepare.readers.base import BadSample, CorpusChangedError, Reader, WorkUnit
from datamodules.prepare.readers.columns import Column
from datamodules.prepare.readers.hugging_face import HuggingFaceReader
from datamodules.prepare.readers.json_lines import JsonLinesReader
from datamodules.prepare.readers.limits import Limits
from datamodules.prepare.readers.media_folder import MediaFolderReader
from datamodules.prepare.readers.parquet import ParquetReader
from datamodules.prepare.readers.samples import SampleLayout
from datamodules.prepare.readers.tar import TarReader
from datamodules.prepare.readers.text import TextReader

__all__ = [
    "BadSample",
    "Column",
    "CorpusChangedError",
    "HuggingFaceReader",
    "JsonLinesReader",
    "Limits",
    "MediaFolderReader",
    "ParquetReader",
    "Reader",
    "SampleLayout",
    "TarReader",
    "TextReader",
    "WorkUnit",
]
