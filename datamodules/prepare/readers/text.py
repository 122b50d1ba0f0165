"""`TextReader`: folders of text files, each one document.

Notable:
- Text is kept as it is, CR LF included; only a byte order mark at the beginning is no text.
- Of a file that is too long no more is read than shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datatrove.data import Document

from datamodules.items import decode_text
from datamodules.prepare.readers.builder import DocumentBuilder, text_too_long
from datamodules.prepare.readers.compression import expanded
from datamodules.prepare.readers.file_reader import UNIT_BYTES, FolderReader
from datamodules.prepare.readers.files import empty_file, open_regular
from datamodules.prepare.readers.limits import Limits

TEXT_PATTERNS = ("*.txt", "*.txt.gz", "*.txt.zst", "*.md", "*.md.gz", "*.md.zst")


class TextReader(FolderReader):
    """UTF-8 text files, plain or compressed (.gz, .zst).

    Args:
        path: a folder of files at any depth, or one file.
        patterns: which files of the folder, matched from the right: "*.txt", "en/*.txt".
        limits: of a document and of the growth of compressed files.
        unit_bytes: how much of a folder is one unit of work.
    """

    def __init__(
        self,
        path: str | Path,
        patterns: Sequence[str] = TEXT_PATTERNS,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        unit_bytes: int = UNIT_BYTES,
    ) -> None:
        super().__init__(path, patterns, limits, unit_bytes)

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        return [[name] for name in names]

    def document(self, folder: Path, names: Sequence[str], document_id: str, source: str) -> Document:
        builder = DocumentBuilder(self.limits)
        builder.add_text(decode_text(self._content(folder / names[0])))
        return builder.document(document_id, source)

    def _content(self, path: Path) -> bytes:
        pieces: list[bytes] = []
        length = 0
        with open_regular(path) as file:
            for piece in expanded(self.chunks(file), path.name, self.limits):
                pieces.append(piece)
                length += len(piece)
                if length > self.limits.text_bytes:
                    raise text_too_long(self.limits)
        if not length:
            raise empty_file()
        return b"".join(pieces)
