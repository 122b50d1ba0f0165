"""`ShardWriter`: a stream of encoded documents -> Arrow files of bounded size, in constant memory.

Notable:
- Documents wait until they make up a record batch of about two megabytes, then go to the file; nothing
  else is kept but five numbers a batch.
- The same documents give the same bytes: no times, no random names, one order.
- A shard gets its name when it is complete and flushed, its index after that (see `durable`).
- Shards are ordinary Arrow IPC files: any Arrow library reads them.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from datamodules.prepared.durable import PARTIAL_SUFFIX, DurableFile, write_durably
from datamodules.prepared.index import (
    INDEX_SUFFIX,
    SHARD_SUFFIX,
    BatchRecord,
    ModalityCount,
    index_content,
    index_path,
)
from datamodules.prepared.layout import TokenLayout
from datamodules.prepared.rows import SCHEMA, EncodedDocument, RowBuilder
from datamodules.text.tokenizer import Encoding

MAX_SHARD_BYTES = 512 << 20
BATCH_BYTES = 2 << 20
_OWN_SUFFIXES = (SHARD_SUFFIX, INDEX_SUFFIX, PARTIAL_SUFFIX)


class ShardWriter:
    """Writes the shards `<prefix>-000.arrow`, `<prefix>-001.arrow`, ...; a context manager.

    Leaving the block finishes the last shard; leaving it by an exception removes the unfinished one.

    Args:
        folder: where they are written; made if it is not there.
        prefix: beginning of their names; what an earlier, interrupted writer left under it is removed.
        layout: of the tokens.
        max_shard_bytes: a shard is closed when it is at least this large.
        batch_bytes: a record batch is closed when it is about this large: what one read checks at once.
        source: name of the corpus that the documents are from.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str,
        layout: TokenLayout,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        batch_bytes: int = BATCH_BYTES,
        source: str = "",
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(os.listdir(self.folder)):
            if name.startswith((f"{prefix}-", f".{prefix}-")) and name.endswith(_OWN_SUFFIXES):
                (self.folder / name).unlink()
        self.prefix = prefix
        self.layout = layout
        self.max_shard_bytes = max_shard_bytes
        self.batch_bytes = batch_bytes
        self.source = source
        self.shards: list[Path] = []
        """Finished ones."""
        self._waiting = RowBuilder(layout)
        self._counts: dict[str, ModalityCount] = {}
        self._shard: _ShardFile | None = None

    def add(self, document_id: str, document: EncodedDocument) -> None:
        """Write a document: items of (modality, `Encoding` or media bytes or plain JSON, supervised).

        Raises:
            PackingError: if a text's ids cannot be packed; nothing of the document is written.
            TypeError: if a value is not plain JSON; likewise.
            OSError: if the disk is full; shards finished before are intact.
        """
        self._waiting.add(document_id, document)
        for modality, data, _ in document:
            count = ModalityCount(
                items=1,
                tokens=len(data) if isinstance(data, Encoding) else 0,
                bytes=len(data) if isinstance(data, bytes) else 0,
            )
            self._counts[modality] = self._counts.get(modality, ModalityCount()) + count
        if self._waiting.size >= self.batch_bytes:
            self._write_batch()
            if self._shard is not None and self._shard.size >= self.max_shard_bytes:
                self._finish_shard()

    def close(self) -> None:
        """Finish the last shard; without documents there is none."""
        if self._waiting.ids:
            self._write_batch()
        if self._shard is not None:
            self._finish_shard()

    def discard(self) -> None:
        """Give up the unfinished shard."""
        if self._shard is not None:
            self._shard.file.discard()
            self._shard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.close()
            except BaseException:
                self.discard()
                raise
        else:
            self.discard()

    def _write_batch(self) -> None:
        if self._shard is None:
            name = f"{self.prefix}-{len(self.shards):03d}{SHARD_SUFFIX}"
            self._shard = _ShardFile(self.folder / name)
        self._shard.write_batch(self._waiting)
        self._waiting = RowBuilder(self.layout)

    def _finish_shard(self) -> None:
        assert self._shard is not None
        shard, self._shard = self._shard, None
        counts, self._counts = self._counts, {}
        self.shards.append(shard.finish(self.source, counts))


class _ShardFile:
    """One shard being written: to Arrow a binary file, which counts and digests what goes to the disk."""

    closed = False

    def __init__(self, path: Path) -> None:
        self.file = DurableFile(path)
        self.size = 0
        self._digest = hashlib.sha256()
        self._batches: list[BatchRecord] = []
        try:
            self._arrow = pa.ipc.new_file(self, SCHEMA)
        except OSError:
            self.file.discard()
            raise

    def write(self, data: Any) -> None:
        """Take bytes or a buffer from Arrow."""
        self.file.write(data)
        self.size += len(data)
        self._digest.update(data)

    def flush(self) -> None:
        """Asked for by Arrow; `DurableFile.commit` does it."""

    def write_batch(self, rows: RowBuilder) -> None:
        """Write documents as a record batch."""
        batch = rows.build()
        message = (
            batch.serialize()
        )  # what ends the file after the next line; the first time a schema is before it
        self._arrow.write_batch(batch)
        start = self.size - message.size
        self._batches.append(
            BatchRecord(start, message.size, zlib.crc32(message), documents=len(rows.ids), tokens=rows.tokens)
        )

    def finish(self, source: str, counts: dict[str, ModalityCount]) -> Path:
        """Give shard and index their names."""
        try:
            self._arrow.close()
        except OSError:
            self.file.discard()
            raise
        self.file.commit()
        path = self.file.path
        index = index_content(path.name, source, self.size, self._digest.hexdigest(), counts, self._batches)
        write_durably(index_path(path), index)
        return path
