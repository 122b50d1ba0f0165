"""`ParquetReader`: Parquet files, one document a row.

Notable:
- Row groups are the units of work, small ones together. Only the columns that are needed are read, a
  few rows at a time: memory holds a page of the file and a batch, never a row group. (How large a page
  is, the file's writer decided.)
- A damaged row group costs its own rows from there on; the others are read.
- Documents are known by their row in the file ("web: a.parquet#17").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document

from datamodules.items import BadItemError
from datamodules.prepare.readers.arrow_rows import batch_rows, records
from datamodules.prepare.readers.base import BadSample, WorkUnit
from datamodules.prepare.readers.columns import Column
from datamodules.prepare.readers.file_reader import UNIT_BYTES, RecordFileReader
from datamodules.prepare.readers.files import changed
from datamodules.prepare.readers.limits import MIB, Limits

_BUFFER_BYTES = MIB  # read of a column at once
_FREE_BYTES = 64 * MIB  # below this, no ratio is suspicious


class ParquetReader(RecordFileReader):
    """Parquet files.

    A column of strings is text, or paths of media; binary, or structs `{bytes, path}`, are media. A
    column `items` of structs is read like the `items` of JSON Lines, `bytes` allowed beside `path`.

    Args:
        path: a file, or a folder of files at any depth.
        columns: in reading order; None: `items` where a file has it, else "text".
        root: folder that media paths are relative to, and must stay in; None: that of the file.
        patterns: which files of the folder, matched from the right: "*.parquet", "train-*".
        limits: of a document.
        unit_bytes: row groups are taken together until they reach this size.
    Raises:
        ValueError: if a number is not positive, or `columns` is empty.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[Column] | None = None,
        root: str | Path | None = None,
        patterns: Sequence[str] = ("*.parquet",),
        limits: Limits = Limits(),  # noqa: B008  # frozen
        unit_bytes: int = UNIT_BYTES,
    ) -> None:
        super().__init__(path, columns, root, patterns, limits, unit_bytes)

    def divide(self, whole: WorkUnit) -> Iterator[WorkUnit]:
        try:
            footer = _open(self.tree.base / whole.path).metadata
        except BadItemError:
            yield whole  # reading it names it
            return
        start = size = 0
        for number in range(footer.num_row_groups):
            size += _compressed_size(footer, number)
            if size >= self._unit_bytes or number + 1 == footer.num_row_groups:
                yield WorkUnit(whole.path, start, number + 1, size, whole.modified)
                start, size = number + 1, 0
        if footer.num_row_groups == 0:
            yield whole

    def documents(self, file: BinaryIO, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        path = self.tree.base / unit.path
        parquet = _open(path)
        footer = parquet.metadata
        stop = footer.num_row_groups if unit.stop == -1 else unit.stop
        if stop > footer.num_row_groups:
            raise changed(path)
        if footer.num_rows == 0:
            raise BadItemError("empty file", "it holds no rows; fetch it again or remove it")
        needed = self._records.needed(parquet.schema_arrow.names)
        first = sum(footer.row_group(number).num_rows for number in range(unit.start))
        root = self.root or path.parent
        for number in range(unit.start, stop):
            try:
                rows = enumerate(self._rows(parquet, number, needed), first)
                for row, record in rows:
                    yield self._document(record, root, f"{source}: {unit.path}#{row}", source)
            except BadItemError as error:
                yield BadSample(f"{source}: {unit.path}, row group {number}", error.kind, error.message)
            first += footer.row_group(number).num_rows
            self.bytes_read += _compressed_size(footer, number)

    def _rows(
        self, parquet: pq.ParquetFile, number: int, needed: list[str]
    ) -> Iterator[dict[str, Any] | BadItemError]:
        """The rows of a row group, a few at a time."""
        size = self._checked_size(parquet.metadata.row_group(number), needed)
        batch_size = batch_rows(parquet.metadata.row_group(number).num_rows, size)
        batches = parquet.iter_batches(batch_size, [number], needed, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise _damage(error) from error
            if batch is None:
                return
            yield from records(batch)

    def _document(
        self, record: dict[str, Any] | BadItemError, root: Path, place: str, source: str
    ) -> Document | BadSample:
        try:
            if isinstance(record, BadItemError):
                raise record
            return self._records.build(record, root).document(place, source)
        except BadItemError as error:
            return BadSample(place, error.kind, error.message)

    def _checked_size(self, group: pq.RowGroupMetaData, needed: list[str]) -> int:
        """Bytes of the needed columns of a row group, decompressed."""
        total = 0
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema.split(".")[0] not in needed:
                continue
            compressed, size = column.total_compressed_size, column.total_uncompressed_size
            if size > _FREE_BYTES and size > self.limits.expansion * max(1, compressed):
                raise BadItemError(
                    "expands too much",
                    f"column '{column.path_in_schema}' grows from {compressed} to {size} bytes: perhaps a "
                    "bomb; if it is honest, raise `limits.expansion`",
                )
            total += size
        return total


def _open(path: Path) -> pq.ParquetFile:
    """
    Raises:
        BadItemError: if the footer cannot be read.
    """
    try:
        return pq.ParquetFile(
            pa.OSFile(str(path)),
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except (pa.ArrowException, OSError) as error:
        raise _damage(error) from error


def _damage(error: Exception) -> Exception:
    """What to raise for an error of the Parquet library."""
    if isinstance(error, OSError) and error.errno:
        return error  # of the disk, not of the file
    return BadItemError("damaged file", f"it is cut short or no Parquet file ({error}); fetch it again")


def _compressed_size(footer: pq.FileMetaData, number: int) -> int:
    group = footer.row_group(number)
    return sum(group.column(column).total_compressed_size for column in range(group.num_columns))
