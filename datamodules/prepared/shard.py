"""`Shard`: one Arrow file of a prepared data set, read through a memory map.

Notable:
- Making one touches no disk. The index is read when it is first asked for, the file is mapped when data
  is, a record batch is parsed once into flat numpy views; after that no Arrow code runs.
- A record batch is checked against its CRC-32 when it is first touched, once; what is never read costs
  nothing.
- Windows over the flat stream of tokens ignore documents, as pre-training on plain text does; their
  previous-word ids are right from the first token on (see `layout`).
- Maps survive a fork; a pickle carries the path alone. Nothing is unpickled.
"""

from __future__ import annotations

import mmap
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from datamodules.prepared.index import REMEDY, DamagedDataError, ShardIndex
from datamodules.prepared.layout import TokenLayout
from datamodules.prepared.rows import SCHEMA, EncodedDocument, Rows
from datamodules.text.tokenizer import Encoding
from datamodules.text.vocabulary import Ids


class Shard:
    """One file of documents.

    Args:
        path: of the file; its index stands beside it.
        layout: of the tokens.
    Raises:
        FileNotFoundError: by whatever touches the file, if it or its index is missing.
        DamagedDataError: likewise, if it is not as it was written; names file, batch and remedy.
    """

    def __init__(self, path: str | Path, layout: TokenLayout) -> None:
        self.path = Path(path)
        self.layout = layout
        self._map: mmap.mmap | None = None
        self._batches: dict[int, Rows] = {}
        self._checked: set[int] = set()

    @cached_property
    def index(self) -> ShardIndex:
        """Counts and places."""
        return ShardIndex.read(self.path)

    def __len__(self) -> int:
        return self.index.documents

    def document(self, number: int) -> EncodedDocument:
        """One document, its texts as `Encoding`, its media as bytes.

        Args:
            number: 0 <= number < len(self).
        """
        rows, row = self._row(number)
        return rows.document(row, self.layout)

    def id(self, number: int) -> str:
        """Where a document stood in the corpus."""
        rows, row = self._row(number)
        return rows.id(row)

    def documents_with(self, modality: str) -> Iterator[int]:
        """Numbers of the documents that hold an item of a modality, in order."""
        if modality in self.index.modalities:
            for batch, end in enumerate(self.index.document_ends):
                rows = self._batch(batch)
                for row in rows.rows_with(modality):
                    yield end - len(rows) + row

    def token_window(self, offset: int, length: int) -> Encoding:
        """Consecutive tokens of the texts of all documents, one behind the other.

        Args:
            offset: of the first token, from the beginning of the shard.
            length: tokens.
        Raises:
            IndexError: if the window leaves the shard.
        """
        columns = np.empty((3, length), np.int64)
        batch, rows, start = self._window(offset, length)
        if start + length <= len(rows.tokens):
            self.layout.unpack_into(rows.tokens, start, columns)
        else:
            for rows, first, stop, at in self._parts(batch, start, length):
                part = self.layout.unpack(rows.tokens, first, stop)
                columns[:, at : at + len(part)] = part.char_ids, part.word_ids, part.previous_word_ids
        return Encoding(columns[0], columns[1], columns[2])

    def character_window(self, offset: int, length: int) -> Ids:
        """The char ids of `token_window`, at a fraction of its cost.

        Args:
            offset, length: as in `token_window`.
        Raises:
            IndexError: as `token_window`.
        """
        batch, rows, start = self._window(offset, length)
        if start + length <= len(rows.tokens):
            return rows.tokens.char[start : start + length].astype(np.int64)
        parts = [part.tokens.char[a:b] for part, a, b, _ in self._parts(batch, start, length)]
        return np.concatenate(parts, dtype=np.int64)

    def close(self) -> None:
        """Let go of the map; it is taken again when it is needed."""
        self._batches.clear()
        self._map = None

    def __reduce__(self) -> tuple[type[Shard], tuple[Path, TokenLayout]]:
        return Shard, (self.path, self.layout)

    def _row(self, number: int) -> tuple[Rows, int]:
        ends = self.index.document_ends
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of '{self.path}', which has {len(self)}")
        batch = bisect_right(ends, number)
        rows = self._batch(batch)
        return rows, number - ends[batch] + len(rows)

    def _window(self, offset: int, length: int) -> tuple[int, Rows, int]:
        """Where a window begins: number of the batch, the batch, token in the batch."""
        ends = self.index.token_ends
        if not 0 <= offset <= self.index.tokens - length or length < 1:
            raise IndexError(
                f"tokens {offset}..{offset + length - 1} of '{self.path}', which has {self.index.tokens}"
            )
        batch = bisect_right(ends, offset)
        rows = self._batch(batch)
        return batch, rows, offset - ends[batch] + len(rows.tokens)

    def _parts(self, batch: int, start: int, length: int) -> Iterator[tuple[Rows, int, int, int]]:
        """A window over several batches: each with first token and end in it, and place in the window."""
        at = 0
        while at < length:
            rows = self._batch(batch)
            stop = min(len(rows.tokens), start + length - at)
            yield rows, start, stop, at
            at += stop - start
            batch, start = batch + 1, 0

    def _batch(self, number: int) -> Rows:
        rows = self._batches.get(number)
        if rows is None:
            rows = self._batches[number] = self._read_batch(number)
        return rows

    def _read_batch(self, number: int) -> Rows:
        if self._map is None:
            self._map = self._mapped()
        start, size = self.index.starts[number], self.index.sizes[number]
        content = pa.py_buffer(self._map).slice(start, size)
        where = f"'{self.path}', record batch {number} (bytes {start}..{start + size - 1})"
        if number not in self._checked:
            found, expected = zlib.crc32(content), self.index.checksums[number]
            if found != expected:
                raise DamagedDataError(
                    f"{where} is damaged: CRC-32 is {found:08x}, was {expected:08x} when written; {REMEDY}"
                )
            self._checked.add(number)
        try:
            return Rows.of(pa.ipc.read_record_batch(content, SCHEMA))
        except (ValueError, pa.ArrowException) as error:
            raise DamagedDataError(
                f"{where} is not what a prepared data set holds ({error}): {REMEDY}"
            ) from error

    def _mapped(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != self.index.bytes:
                    raise DamagedDataError(
                        f"'{self.path}' has {size} bytes, it was written with {self.index.bytes}: {REMEDY}"
                    )
                return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"'{self.path}' is missing, its index is there: {REMEDY}") from error
