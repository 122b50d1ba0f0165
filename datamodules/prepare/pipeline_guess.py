"""`guess_reader`: the reader for a file or folder that is named without its kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from datamodules.prepare.readers import (
    HuggingFaceReader,
    JsonLinesReader,
    MediaFolderReader,
    ParquetReader,
    Reader,
    TarReader,
    TextReader,
)
from datamodules.prepare.readers.json_lines import JSON_LINES_PATTERNS
from datamodules.prepare.readers.samples import MEDIA_SUFFIXES
from datamodules.prepare.readers.tar import TAR_PATTERNS
from datamodules.prepare.readers.text import TEXT_PATTERNS

_LOOKED_AT = 10_000
_MEDIA = tuple(f"*{suffix}" for suffixes in MEDIA_SUFFIXES.values() for suffix in suffixes)
_KINDS: dict[str, tuple[Callable[[str], Reader], Sequence[str]]] = {
    "JSON Lines": (JsonLinesReader, JSON_LINES_PATTERNS),
    "Parquet": (ParquetReader, ("*.parquet",)),
    "tar": (TarReader, TAR_PATTERNS),
    "media": (MediaFolderReader, _MEDIA),
    "text": (TextReader, TEXT_PATTERNS),
}
_SAVED_DATASET = ("dataset_info.json", "dataset_dict.json")


def guess_reader(path: str) -> Reader:
    """Look at names alone, of the first files only where there are many.

    Args:
        path: a file, or a folder whose files are of one kind: texts, JSON Lines (with media beside them),
            Parquet, tar shards, media with captions, or a data set saved by Hugging Face `datasets`.
    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if the kind is unknown, or there are several.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"'{path}' does not exist: correct --input")
    if any(Path(path, name).is_file() for name in _SAVED_DATASET):
        return HuggingFaceReader(path)
    kinds = {kind for name in islice(_names(path), _LOOKED_AT) if (kind := _kind(name)) is not None}
    found = ", ".join(sorted(kinds)) or "none that is known"
    if "JSON Lines" in kinds:
        kinds.discard("media")  # which the lines name
    if "media" in kinds:
        kinds.discard("text")  # which are their captions
    if len(kinds) == 1 and (kinds != {"media"} or os.path.isdir(path)):
        return _KINDS[kinds.pop()][0](path)
    raise ValueError(
        f"cannot tell what kind of corpus '{path}' is (files in it: {found}): name a part of it, or describe "
        "it in a config (`sources`)"
    )


def _names(path: str) -> Iterator[str]:
    if os.path.isfile(path):
        yield os.path.basename(path)
    for _, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (name for name in names if not name.startswith("."))


def _kind(name: str) -> str | None:
    for kind, (_, patterns) in _KINDS.items():
        if any(fnmatch(name.lower(), pattern) for pattern in patterns):
            return kind
    return None
