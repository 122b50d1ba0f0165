"""`MediaFolderReader`: folders of images and sounds, each with its caption beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datatrove.data import Document

from datamodules.prepare.readers.file_reader import UNIT_BYTES, FolderReader
from datamodules.prepare.readers.files import open_regular
from datamodules.prepare.readers.limits import Limits
from datamodules.prepare.readers.samples import SampleLayout, assemble


class MediaFolderReader(FolderReader):
    """Media files with sidecars: `x.png` + `x.txt`, or `x.flac` + `x.json`.

    Args:
        path: a folder of files at any depth.
        layout: the order of media and caption, and which files they are.
        patterns: which files of the folder, matched from the right: "*", "birds/*".
        limits: of a document.
        unit_bytes: how much of a folder is one unit of work.
    """

    def __init__(
        self,
        path: str | Path,
        layout: SampleLayout = SampleLayout(),  # noqa: B008  # frozen
        patterns: Sequence[str] = ("*",),
        limits: Limits = Limits(),  # noqa: B008  # frozen
        unit_bytes: int = UNIT_BYTES,
    ) -> None:
        super().__init__(path, patterns, limits, unit_bytes)
        self.layout = layout

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(Path(name).stem, []).append(name)
        return [groups[stem] for stem in sorted(groups)]

    def name_of(self, group: Sequence[str]) -> str:
        return Path(group[0]).stem

    def document(self, folder: Path, names: Sequence[str], document_id: str, source: str) -> Document:
        files = {name: partial(self._load, folder / name) for name in names}
        return assemble(files, self.layout, self.limits).document(document_id, source)

    def _load(self, path: Path, room: int) -> bytes:
        with open_regular(path) as file:
            data = file.read(room + 1)
        self.bytes_read += len(data)
        return data
