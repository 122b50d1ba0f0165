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
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from datamodules.prepared.index import REMEDY, DamagedDataError, ShardIndex
from datamodules.prepared.layout import PackedTokens, TokenLayout, unpack
from datamodules.prepared.rows import SCHEMA, EncodedDocument, Rows
from datamodules.text.tokenizer import Encoding
from datamodules.text.vocabulary import Ids

_INT64 = np.dtype(np.int64)
_UNREAD = -1


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
            length: tokens, at least one.
        Raises:
            IndexError: if the window leaves the shard.
        """
        columns = np.empty((3, length), _INT64)
        stream = self._stream
        place = bisect_right(stream.starts, offset)
        char_at = stream.char_at[place]
        if char_at >= 0 and offset + length <= stream.starts[place]:
            unpack(
                stream.halves,
                stream.halves,
                stream.bytes,
                char_at,
                stream.low_at[place],
                stream.high_at[place],
                offset,
                self.layout.num_words,
                self.layout.high_bits,
                columns,
            )
        else:
            for tokens, start, stop, at in self._parts(offset, length):
                part = self.layout.unpack(tokens, start, stop)
                columns[0, at : at + len(part)] = part.char_ids
                columns[1, at : at + len(part)] = part.word_ids
                columns[2, at : at + len(part)] = part.previous_word_ids
        return Encoding(columns[0], columns[1], columns[2])

    def character_window(self, offset: int, length: int) -> Ids:
        """The char ids of `token_window`, at a fraction of its cost.

        Args:
            offset, length: as in `token_window`.
        Raises:
            IndexError: as `token_window`.
        """
        stream = self._stream
        place = bisect_right(stream.starts, offset)
        at = stream.char_at[place]
        end = offset + length
        if at >= 0 and end <= stream.starts[place]:
            return stream.halves[at + offset : at + end].astype(_INT64)
        parts = [tokens.char[start:stop] for tokens, start, stop, _ in self._parts(offset, length)]
        return np.concatenate(parts, dtype=np.int64)

    def close(self) -> None:
        """Let go of the map; it is taken again when it is needed."""
        self._batches.clear()
        for name in ("_map", "_stream"):
            self.__dict__.pop(name, None)

    def __reduce__(self) -> tuple[type[Shard], tuple[Path, TokenLayout]]:
        return Shard, (self.path, self.layout)

    def _row(self, number: int) -> tuple[Rows, int]:
        ends = self.index.document_ends
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of '{self.path}', which has {len(self)}")
        batch = bisect_right(ends, number)
        rows = self._batch(batch)
        return rows, number - ends[batch] + len(rows)

    @cached_property
    def _stream(self) -> _TokenStream:
        return _TokenStream(self.index.token_ends, self._map)

    def _parts(self, offset: int, length: int) -> Iterator[tuple[PackedTokens, int, int, int]]:
        """A window over several batches, or over one that was not read yet.

        Yields:
            Tokens of a batch, the first one and the end in it, their place in the window.
        """
        if not 0 <= offset <= self.index.tokens - length:
            raise IndexError(
                f"tokens {offset}..{offset + length - 1} of '{self.path}', which has {self.index.tokens}"
            )
        at = 0
        while at < length:
            batch = bisect_right(self.index.token_ends, offset + at)
            tokens = self._batch(batch).tokens
            first = self.index.token_ends[batch] - len(tokens)
            self._stream.open(batch, first, tokens)
            start = offset + at - first
            stop = min(len(tokens), start + length - at)
            yield tokens, start, stop, at
            at += stop - start

    def _batch(self, number: int) -> Rows:
        rows = self._batches.get(number)
        if rows is None:
            rows = self._batches[number] = self._read_batch(number)
        return rows

    def _read_batch(self, number: int) -> Rows:
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

    @cached_property
    def _map(self) -> mmap.mmap:
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


class _TokenStream:
    """Where in the file the tokens of every batch stand: all that a window needs, in few objects.

    The lists are indexed by the place of an offset among `starts`: 0 is before the shard, the last behind it.

    Args:
        token_ends: tokens in all batches up to and including each.
        content: of the file.
    """

    def __init__(self, token_ends: Sequence[int], content: mmap.mmap) -> None:
        self.starts = [0, *token_ends]
        """First token of each batch, and the end."""
        self.char_at = array("q", [_UNREAD] * (len(token_ends) + 2))
        """Where in `halves` the shard's token 0 would stand, were all batches before like this one."""
        self.low_at = self.char_at[:]
        self.high_at = self.char_at[:]
        self.bytes = np.frombuffer(content, np.uint8)
        self.halves = np.frombuffer(content, np.uint16, count=len(content) // 2)

    def open(self, batch: int, first: int, tokens: PackedTokens) -> None:
        """Make the tokens of a batch readable.

        Args:
            batch: its number.
            first: offset of its first token.
            tokens: views into the file.
        """
        place, base = batch + 1, self.bytes.ctypes.data
        # Arrow aligns every buffer to 8 bytes, and before a batch stand more bytes than tokens
        self.char_at[place] = (tokens.char.ctypes.data - base) // 2 - first
        self.low_at[place] = (tokens.word_low.ctypes.data - base) // 2 - first
        self.high_at[place] = tokens.word_high.ctypes.data - base - first
