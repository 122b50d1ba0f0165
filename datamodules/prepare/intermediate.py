"""The documents of a task between two stages: `WriteKept` and `ReadKept`, one Arrow stream file a task.

Notable:
- Media go through as their compressed bytes, texts and values as they are; the file is compressed with
  zstd, and read and written batch by batch, in constant memory.
- A file is written beside, flushed to the disk and renamed: where it exists, it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from datamodules.prepare.document import Item, pack, unpack
from datamodules.prepare.plan import SourceUnit
from datamodules.prepare.progress import Progress, ProgressFile

_BATCH_DOCUMENTS = 256
_BATCH_BYTES = 4 << 20
_TEXT = pa.large_binary()  # names of files may hold what is no UTF-8
_ITEM = pa.struct(
    [
        ("modality", pa.string()),
        ("text", _TEXT),
        ("media", pa.large_binary()),
        ("value", _TEXT),  # JSON; null where the item is a text or a medium
        ("supervised", pa.bool_()),
        ("name", _TEXT),
    ]
)
_SCHEMA = pa.schema([("id", _TEXT), ("source", pa.string()), ("items", pa.list_(_ITEM))])
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class WriteKept(PipelineStep):  # type: ignore[misc]  # datatrove is not typed
    """Writes the documents of a task and passes them on.

    Args:
        folder: for the files of all tasks.
    """

    type = "onn"
    name = "keep documents for the next stage"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """datatrove's entry: one task."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = _path(self.folder, rank)
        beside = path.with_suffix(".partial")
        with beside.open("wb") as file:
            with pa.ipc.new_stream(file, _SCHEMA, options=_OPTIONS) as writer:
                rows: list[dict[str, Any]] = []
                size = 0
                for document in data or ():
                    with self.track_time():
                        rows.append(_row(document))
                        size += _size(rows[-1])
                        if len(rows) == _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
                            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
                            rows, size = [], 0
                    yield document
                if rows:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


class ReadKept(PipelineStep):  # type: ignore[misc]  # datatrove is not typed
    """Reads what `WriteKept` wrote, in the same order.

    Args:
        folder: as given to `WriteKept`.
        units_of_task: of a task's number: what was read for it.
        progress_folder: where tasks report how far they are, in bytes of the corpus.
    """

    type = "onn"
    name = "documents of the stage before"

    def __init__(
        self, folder: Path, units_of_task: Callable[[int], Iterable[SourceUnit]], progress_folder: Path
    ) -> None:
        super().__init__()
        self.folder, self.units_of_task, self.progress_folder = folder, units_of_task, progress_folder

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """datatrove's entry: one task.

        Raises:
            ValueError: if the file of the task is missing or damaged.
        """
        path = _path(self.folder, rank)
        progress = ProgressFile(self.progress_folder, rank)
        size = sum(unit.size for _, unit in self.units_of_task(rank))
        documents = 0
        try:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    for row in batch.to_pylist():
                        if progress.due:
                            progress.report(Progress(size * file.tell() // file.size(), documents))
                        yield _document(row)
                        documents += 1
                progress.report(Progress(size, documents))
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"'{path}', written by an earlier stage, is missing or damaged ({error}); "
                "start anew with --overwrite"
            ) from error


def _path(folder: Path, task: int) -> Path:
    return folder / f"{task:05d}.arrow"


def _row(document: Document) -> dict[str, Any]:
    items = [
        {
            "modality": item.modality,
            "text": None if item.text is None else _encoded(item.text),
            "media": item.media,
            "value": json.dumps(item.value).encode() if item.text is None and item.media is None else None,
            "supervised": item.supervised,
            "name": _encoded(item.name),
        }
        for item in unpack(document)
    ]
    return {"id": _encoded(document.id), "source": document.metadata["source"], "items": items}


def _size(row: dict[str, Any]) -> int:
    return sum(len(item["text"] or item["media"] or item["value"] or b"") for item in row["items"])


def _document(row: dict[str, Any]) -> Document:
    items = [
        Item(
            modality=item["modality"],
            text=None if item["text"] is None else _decoded(item["text"]),
            media=item["media"],
            value=None if item["value"] is None else json.loads(item["value"]),
            supervised=item["supervised"],
            name=_decoded(item["name"]),
        )
        for item in row["items"]
    ]
    return pack(items, _decoded(row["id"]), row["source"])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
