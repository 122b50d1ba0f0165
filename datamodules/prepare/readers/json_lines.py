"""`JsonLinesReader`: JSON Lines, one record a line, one document a record.

Notable:
- A plain file is divided into byte ranges, so that one large file feeds many tasks. Its documents are
  therefore known by the byte at which their line begins ("web: a.jsonl@1024"), which no division
  changes; `tail -c +1025 a.jsonl | head -n 1` shows one. Lines of compressed files have numbers
  ("web: a.jsonl.gz:17").
- A key that occurs twice is an error: one of the two values would vanish unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from datatrove.data import Document

from datamodules.items import BadItemError, parse_json
from datamodules.prepare.readers.base import BadSample, WorkUnit
from datamodules.prepare.readers.columns import Column
from datamodules.prepare.readers.compression import check_head, codec_of, expanded
from datamodules.prepare.readers.file_reader import UNIT_BYTES, RecordFileReader
from datamodules.prepare.readers.files import empty_file
from datamodules.prepare.readers.limits import Limits
from datamodules.prepare.readers.lines import TO_THE_END, lines

JSON_LINES_PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst")


class JsonLinesReader(RecordFileReader):
    """JSON Lines files, plain or compressed (.gz, .zst).

    A record is `{"items": [...]}` as `datamodules.sources.JsonLines` reads it, or a flat object whose
    keys are `columns`.

    Args:
        path: a file, or a folder of files at any depth.
        columns: keys of flat records, in reading order; None: `items` where a record has it, else "text".
        root: folder that media paths are relative to, and must stay in; None: that of the file.
        patterns: which files of the folder, matched from the right: "*.jsonl", "en/*.jsonl".
        limits: of a document and of the growth of compressed files.
        unit_bytes: into ranges of which size plain files are divided.
    Raises:
        ValueError: if a number is not positive, or `columns` is empty.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[Column] | None = None,
        root: str | Path | None = None,
        patterns: Sequence[str] = JSON_LINES_PATTERNS,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        unit_bytes: int = UNIT_BYTES,
    ) -> None:
        super().__init__(path, columns, root, patterns, limits, unit_bytes)

    def divide(self, whole: WorkUnit) -> Iterator[WorkUnit]:
        if codec_of(whole.path) is not None:
            yield whole
            return
        start = 0
        while whole.size - start > self._unit_bytes:
            stop = start + self._unit_bytes
            yield WorkUnit(whole.path, start, stop, self._unit_bytes, whole.modified)
            start = stop
        yield WorkUnit(whole.path, start, -1, whole.size - start, whole.modified)

    def documents(self, file: BinaryIO, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        compressed = codec_of(unit.path) is not None
        root = self.root or (self.tree.base / unit.path).parent
        empty = True
        numbered = self._compressed_lines(file, unit) if compressed else self._range(file, unit)
        for number, (offset, line) in enumerate(numbered, 1):
            empty = False
            if line is not None and (not line or line.isspace()):
                continue
            place = f"{source}: {unit.path}:{number}" if compressed else f"{source}: {unit.path}@{offset}"
            try:
                if line is None:
                    raise BadItemError(
                        "line too long",
                        f"the line is longer than {self.limits.record_bytes} bytes; split it, or raise "
                        "`limits.text_bytes`",
                    )
                builder = self._records.build(parse_json(line, _unique), root)
                yield builder.document(place, source)
            except BadItemError as error:
                yield BadSample(place, error.kind, error.message)
        if compressed and empty:
            raise empty_file()

    def _compressed_lines(self, file: BinaryIO, unit: WorkUnit) -> Iterator[tuple[int, bytes | None]]:
        content = expanded(self.chunks(file), unit.path, self.limits)
        return lines(content, 0, TO_THE_END, self.limits.record_bytes)

    def _range(self, file: BinaryIO, unit: WorkUnit) -> Iterator[tuple[int, bytes | None]]:
        check_head(file.read(4), unit.path)
        begin = max(0, unit.start - 1)  # an LF there begins a line at `start`
        file.seek(begin)
        stop = TO_THE_END if unit.stop == -1 else unit.stop
        return lines(self.chunks(file), begin, stop, self.limits.record_bytes, in_line=unit.start > 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadItemError("duplicate key", f"key {twice[:50]!r} occurs twice; remove one of them")
    return record
