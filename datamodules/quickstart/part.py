"""`Part`: one independent piece of the quickstart data, and where it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.quickstart.archives import Archive

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Workplace:
    """Folders that a part's builder is given.

    Args:
        archive: the verified archive, or None for a part without one.
        finished: the data folder, with the outputs of the parts that this one needs.
        stage: empty folder to write into, laid out as the data folder; moved there when complete.
    """

    archive: Path | None
    finished: Path
    stage: Path

    @property
    def source(self) -> Path:
        """The archive of a part that has one."""
        if self.archive is None:
            raise ValueError("this part has no archive")
        return self.archive


@dataclass(frozen=True)
class Part:
    """One piece of the data: built as a whole, or not at all.

    Args:
        name: name in the manifest and in messages.
        build: writes the part's files into the stage; returns the number of documents by split.
        recipe: whatever decides the outputs apart from the archive; another recipe, another build.
        archive: where the raw data come from.
        needs: names of parts whose outputs this one reads.
        optional: a failure is noted in the manifest and the other parts go on.
    """

    name: str
    build: Callable[[Workplace], dict[str, int]]
    recipe: str
    archive: Archive | None = None
    needs: tuple[str, ...] = ()
    optional: bool = False


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """One UTF-8 file a text, `<name>.txt`, with plain line feeds on every system."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")


def captioned(modality: str, path: str, text: str) -> dict[str, list[dict[str, str]]]:
    """A document of one medium followed by its text; `path` is relative to the JSON Lines file."""
    return {"items": [{"modality": modality, "path": path}, {"modality": "text", "text": text}]}


def write_documents(path: Path, documents: Iterable[Mapping[str, object]]) -> int:
    """Write documents as JSON Lines; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(lines)
