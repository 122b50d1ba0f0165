"""Sources given by a mere path: what lies there decides how it is read.

Notable:
- Only the names of files are looked at; what is not there is said by the source that will read it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datamodules.prepared import PreparedSource
from datamodules.prepared.manifest import MANIFEST_NAME
from datamodules.sources import JsonLines, Source, TextFiles

Corpora = str | list[str] | dict[str, Source]
"""A path, several, or sources by name."""


def named_sources(corpora: Corpora | None, source_at: Callable[[str], Source]) -> dict[str, Source]:
    """The sources by name; a path's name is its last part without a suffix.

    Args:
        corpora: as given; None: no source.
        source_at: makes the source of a path.
    Raises:
        ValueError: if two paths have the same name.
    """
    if isinstance(corpora, dict):
        return corpora
    paths = [corpora] if isinstance(corpora, str) else corpora or []
    sources = {Path(path).stem: source_at(path) for path in paths}
    if len(sources) != len(paths):
        raise ValueError(f"of the paths {paths}, two have the same name: give sources by name instead")
    return sources


def text_at(path: str) -> Source:
    """A JSON Lines file, a prepared data set, or text files: a folder of `.txt`, or a single one."""
    if is_prepared(path) or Path(path).suffix == ".jsonl":
        return media_at(path)
    return TextFiles(path)


def media_at(path: str) -> Source:
    """A JSON Lines file, or a prepared data set."""
    return JsonLines(path) if Path(path).suffix == ".jsonl" else PreparedSource(path)


def is_prepared(path: str) -> bool:
    """Whether a folder is a prepared data set, or holds some."""
    folder = Path(path)
    return (folder / MANIFEST_NAME).is_file() or any(folder.glob(f"*/{MANIFEST_NAME}"))
