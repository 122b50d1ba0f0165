"""`HuggingFaceReader`: any data set that the `datasets` library loads, one document a row.

Notable:
- Rows are taken as Arrow, so images and sounds stay the compressed bytes they are stored as.
- Loading (and downloading, and the conversion into the library's cache) happens once, when the work is
  planned; tasks read memory-mapped row ranges. With `streaming`, shards of the remote data set are the
  units, and nothing is kept on disk.
- Documents are known by split and row ("web: train#17"), when streaming by shard and row in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document

from datamodules.hugging_face_data import HuggingFaceData, relative_media
from datamodules.items import BadItemError
from datamodules.prepare.readers.arrow_rows import batch_rows, records
from datamodules.prepare.readers.base import BadSample, CorpusChangedError, Reader, WorkUnit
from datamodules.prepare.readers.columns import Column, Records
from datamodules.prepare.readers.file_reader import UNIT_BYTES
from datamodules.prepare.readers.limits import Limits

_STREAMED_ROWS = 32  # of which the size is not known
_ROWS, _SHARDS = "rows", "shards"


class HuggingFaceReader(Reader):
    """A data set of the Hugging Face `datasets` library.

    Args:
        path: a folder made by `save_to_disk`; a folder of data files; a builder ("parquet", "json",
            "imagefolder", ...) with `data_files` or `data_dir`; or a name on the hub.
        name: configuration of the data set.
        split: which part of it, slices allowed: "train", "train[:1%]".
        columns: in reading order; None: `items` where there is such a column, else "text".
        data_files, data_dir: for builders and for folders.
        revision: of a data set on the hub; pin it, so that a resumed preparation reads the same.
        streaming: read remote shards as they come instead of loading the data set first.
        root: folder that media paths are relative to, and must stay in; None: the data set's own folder
            or `data_dir`, and for one from the hub the library's cache.
        limits: of a document.
        unit_bytes: how much of the data set is one unit of work.
    Raises:
        ValueError: if a number is not positive, `columns` is empty, or the builder reads pickles.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        columns: Sequence[Column] | None = None,
        data_files: str | Sequence[str] | None = None,
        data_dir: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        root: str | Path | None = None,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        unit_bytes: int = UNIT_BYTES,
    ) -> None:
        if unit_bytes < 1:
            raise ValueError(f"unit_bytes is {unit_bytes}, it must be at least 1")
        self._data = HuggingFaceData(path, name, split, data_files, data_dir, revision)
        self.path = path
        self.name = name
        self.split = split
        self.streaming = streaming
        self.root = root
        self.columns = columns
        self._records = Records(columns, limits)
        self._unit_bytes = unit_bytes
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}  # every process maps the data set for itself

    def plan(self) -> Iterator[WorkUnit]:
        dataset = self._dataset()
        fingerprint = self._fingerprint(dataset)
        self._needed(dataset)  # refused now rather than by every task
        if self.streaming:
            whole = dataset.info.download_size or 0
            size = whole // dataset.num_shards or self._unit_bytes
            for shard in range(dataset.num_shards):
                yield WorkUnit(_SHARDS, shard, shard + 1, size, fingerprint)
            return
        count = len(dataset)
        if not count:
            raise ValueError(f"data set '{self.path}', split '{self.split}', has no rows: correct `split`")
        row_bytes = dataset.data.nbytes / count
        rows = max(1, int(self._unit_bytes / max(1.0, row_bytes)))
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            yield WorkUnit(_ROWS, start, stop, round((stop - start) * row_bytes), fingerprint)

    def read(self, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        dataset = self._dataset()
        if self._fingerprint(dataset) != unit.modified:
            raise CorpusChangedError(
                f"data set '{self.path}' has changed since the preparation was planned: restore it (pin its "
                "`revision`), or start the preparation anew with --overwrite"
            )
        dataset = dataset.select_columns(self._needed(dataset)).with_format("arrow")
        root = self._root()
        if unit.path == _SHARDS:
            shard = dataset.shard(dataset.num_shards, unit.start)
            tables = shard.iter(_STREAMED_ROWS)
            place, row = f"{source}: {self.split}#{unit.start}.", 0
        else:
            size = batch_rows(unit.stop - unit.start, unit.size)
            starts = range(unit.start, unit.stop, size)
            tables = (dataset[start : min(start + size, unit.stop)] for start in starts)
            place, row = f"{source}: {self.split}#", unit.start
        for table in tables:
            for record in records(table):
                yield self._document(record, root, f"{place}{row}", source)
                row += 1
            self.bytes_read += table.nbytes

    def _document(
        self, record: dict[str, Any] | BadItemError, root: Path, place: str, source: str
    ) -> Document | BadSample:
        try:
            if isinstance(record, BadItemError):
                raise record
            own = {name: relative_media(value, root) for name, value in record.items()}
            return self._records.build(own, root).document(place, source)
        except BadItemError as error:
            return BadSample(place, error.kind, error.message)

    def _dataset(self) -> Any:
        """The data set, loaded once in each process."""
        if self._loaded is None:
            self._loaded = self._data.load(self.streaming)
        return self._loaded

    def _needed(self, dataset: Any) -> list[str]:
        """
        Raises:
            ValueError: if the data set lacks a column.
        """
        try:
            return self._records.needed(dataset.column_names or [])
        except BadItemError as error:
            raise ValueError(f"data set '{self.path}', split '{self.split}': {error}") from error

    def _fingerprint(self, dataset: Any) -> int:
        """Of the number of rows, their schema and the data files: the same on every machine."""
        parts = [str(dataset.features), str(dataset.num_shards if self.streaming else len(dataset))]
        if not self.streaming:
            parts.append(str(dataset.data.nbytes))
            for mark in ("state.json", f"{self.split}/state.json"):
                if (state := Path(self.path) / mark).is_file():
                    parts.append(state.read_text(encoding="utf-8"))
        return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:7])

    def _root(self) -> Path:
        return self._data.media_root() if self.root is None else Path(self.root)
