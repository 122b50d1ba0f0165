"""`HuggingFaceSource`: a Hugging Face data set read where it lies, one document a row.

Notable:
- Memory-mapped: rows are taken as Arrow when they are asked for, and media stay the compressed bytes (or
  the path) they are stored as; our modalities decode them.
- Columns are mapped to items as in the pipeline's `HuggingFaceReader`; data that is read more than once is
  better prepared first (`onn prepare`): filtered, deduplicated, tokenised.
- A stream of the hub (`streaming=True` there) has no row n without those before it, so a place in it could
  be gone on from by reading everything again: prepare it, or load it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.columns import Column
from datamodules.hugging_face_data import HuggingFaceData, relative_media
from datamodules.items import path_below
from datamodules.sources import Source
from onn_lightning.document import Document, RawItem
from onn_lightning.modality import BadSampleError


class HuggingFaceSource(Source):
    """A data set of the Hugging Face `datasets` library.

    Args:
        path: a folder made by `save_to_disk`; a folder of data files; a builder ("parquet", "json",
            "imagefolder", ...) with `data_files` or `data_dir`; or a name on the hub.
        name: configuration of the data set.
        split: which part of it, slices allowed: "train", "train[:1%]".
        columns: in reading order; None: the text column "text".
        data_files, data_dir: for builders and for folders.
        revision: of a data set on the hub; pin it, so that a resumed run reads the same.
        root: folder that media paths are relative to, and must stay in; None: the data set's own folder
            or `data_dir`, and for one from the hub the library's cache.
        weight: share of the tokens of the training mixture.
    Raises:
        ValueError: if the builder reads pickles, or `columns` is empty.
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
        root: str | Path | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        if columns is not None and not columns:
            raise ValueError("columns is empty: name at least one, or leave it out to read 'text'")
        self._data = HuggingFaceData(path, name, split, data_files, data_dir, revision)
        self._columns = tuple(columns or (Column("text"),))
        self._given_root = root

    def __getstate__(self) -> dict[str, Any]:
        """Every process maps the data set for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    @cached_property
    def _rows(self) -> Any:
        """The columns that are read, as Arrow."""
        rows = self._data.load()
        names = rows.column_names
        missing = [each.name for each in self._columns if not each.optional and each.name not in names]
        if missing:
            raise ValueError(
                f"data set '{self._data.path}', split '{self._data.split}': there is no column {missing}; "
                f"set `columns` out of {sorted(names)}"
            )
        wanted = {column.name for column in self._columns}
        return rows.select_columns([name for name in names if name in wanted]).with_format("arrow")

    @cached_property
    def _root(self) -> Path:
        return self._data.media_root() if self._given_root is None else Path(self._given_root)

    def __len__(self) -> int:
        return len(self._rows)  # `datasets` loads none that is empty

    def __getitem__(self, index: int) -> Document:
        import pyarrow as pa

        try:
            table = self._rows[index]
            table.validate(full=True)  # offsets out of a damaged file would otherwise be followed
            record = table.to_pylist()[0]
        except pa.ArrowInvalid as error:
            raise BadSampleError(
                f"{self.describe(index)}: cannot be read ({error}); mend or remove the row"
            ) from error
        try:
            items = [self._item(column, record.get(column.name)) for column in self._columns]
        except BadSampleError as error:
            raise BadSampleError(f"{self.describe(index)}: {error}") from error
        document = [item for item in items if item is not None]
        if not document:
            raise BadSampleError(f"{self.describe(index)}: all of its columns are empty; remove the row")
        return document

    def describe(self, index: int) -> str:
        return f"{self._data.path}: {self._data.split}#{index}"

    def indices_with(self, modality: str) -> Iterator[int]:
        held = any(column.modality == modality for column in self._columns)
        return iter(range(len(self)) if held else ())

    def _item(self, column: Column, value: Any) -> RawItem | None:
        """The item of one column; None: it is empty, as it may be.

        Raises:
            BadSampleError: if it is empty or of the wrong kind.
        """
        if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:  # an image or a sound
            value = relative_media(value, self._root)
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if value is None or (column.modality == "text" and isinstance(value, str) and not value.strip()):
            if column.optional:
                return None
            raise BadSampleError(
                f"column '{column.name}' {'is null' if value is None else 'is blank'}; set `optional: true` "
                "for it, or drop the row"
            )
        if column.modality == "text":
            if not isinstance(value, str):
                raise BadSampleError(
                    f"column '{column.name}' must be a string, is {type(value).__name__}; correct `columns`"
                )
        elif isinstance(value, str):
            value = self._medium(value)
        return column.modality, value, column.supervised

    def _medium(self, name: str) -> str:
        path = path_below(name, self._root)
        if not path.is_file():
            raise BadSampleError(f"'{path}' does not exist; restore the file or remove the row")
        return str(path)
