"""Records -> items: our own `{"items": [...]}`, or the columns of anybody's table.

Notable:
- The value decides what a column holds: a string is text, or the path of a medium below the root;
  binary, or a struct `{bytes, path}` as Hugging Face writes it, is a medium; anything else is a value.
- A column that a record lacks makes it a bad sample, unless the column is optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.columns import Column
from datamodules.items import BadItemError, ItemRecord, item_records
from datamodules.prepare.readers.builder import DocumentBuilder, read_media
from datamodules.prepare.readers.limits import Limits

ITEMS = "items"


class Records:
    """Makes documents out of records.

    Args:
        columns: in reading order; None: `items` where a record has it, else the text column "text".
        limits: of a document.
    Raises:
        ValueError: if there is no column.
    """

    def __init__(self, columns: Sequence[Column] | None, limits: Limits) -> None:
        if columns is not None and not columns:
            raise ValueError("columns is empty: name at least one, or leave it out to read `items` or `text`")
        self._columns = columns
        self._limits = limits

    def needed(self, available: Sequence[str]) -> list[str]:
        """Which of a table's columns are read.

        Raises:
            BadItemError: if it lacks one that is not optional, or has one twice.
        """
        columns = self._columns or [Column(ITEMS if ITEMS in available else "text")]
        missing = [each.name for each in columns if not each.optional and each.name not in available]
        if missing:
            raise BadItemError(
                "missing column", f"there is no column {missing}; set `columns` out of {sorted(available)}"
            )
        wanted = {column.name for column in columns}
        twice = [name for name in wanted if available.count(name) > 1]
        if twice:
            raise BadItemError("duplicate key", f"column {twice} occurs twice; rename one of them")
        return [name for name in available if name in wanted]

    def build(self, record: Any, root: Path) -> DocumentBuilder:
        """Gather the items of one record.

        Args:
            record: of JSON or of a table.
            root: folder that media paths are relative to, and must stay in.
        Raises:
            BadItemError: if an item cannot be used.
        """
        builder = DocumentBuilder(self._limits)
        if not isinstance(record, dict):
            raise BadItemError("malformed record", f"must be an object, is a {type(record).__name__}")
        if self._columns is None and ITEMS in record:
            for item in item_records(_without_nulls(record), ("text", "path", "bytes", "value")):
                _add_item(builder, item, root)
        else:
            for column in self._columns or (Column("text"),):
                _add_column(builder, column, record.get(column.name), root)
        return builder


def _without_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """A table's structs have all fields; those that an item does not use are null."""
    if not isinstance(record[ITEMS], list):
        return record
    return {
        ITEMS: [
            {key: value for key, value in item.items() if value is not None}
            if isinstance(item, dict)
            else item
            for item in record[ITEMS]
        ]
    }


def _add_item(builder: DocumentBuilder, item: ItemRecord, root: Path) -> None:
    if item.form == "path":
        load = partial(read_media, item.raw, root, item.modality)
        builder.add_media(item.modality, item.raw, load, item.supervised)
    elif item.form == "bytes":
        if not isinstance(item.raw, bytes):
            raise BadItemError("malformed record", f'"bytes" must be binary, is {type(item.raw).__name__}')
        builder.add_media(item.modality, "bytes", partial(_given, item.raw), item.supervised)
    elif item.form == "text" and item.modality == "text":
        builder.add_text(item.raw, item.supervised)
    else:
        builder.add_value(item.modality, item.raw, item.supervised)


def _add_column(builder: DocumentBuilder, column: Column, value: Any, root: Path) -> None:
    modality, supervised = column.modality, column.supervised
    if value is None or (modality == "text" and isinstance(value, str) and not value.strip()):
        if column.optional:
            return
        missing = "is missing or null" if value is None else "is blank"
        raise BadItemError(
            "missing column",
            f"column '{column.name}' {missing}; set `optional: true` for it, or drop the record",
        )
    if modality == "text":
        if not isinstance(value, str):
            raise BadItemError(
                "malformed record", f"column '{column.name}' must be a string, is {type(value).__name__}"
            )
        builder.add_text(value, supervised)
    elif isinstance(value, bytes):
        builder.add_media(modality, column.name, partial(_given, value), supervised)
    elif isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        _add_file(builder, column, value, root)
    elif isinstance(value, str):
        builder.add_media(modality, value, partial(read_media, value, root, modality), supervised)
    else:
        builder.add_value(modality, value, supervised)


def _add_file(builder: DocumentBuilder, column: Column, value: Mapping[str, Any], root: Path) -> None:
    data, path = value["bytes"], value["path"]
    if data is None and path is None and column.optional:
        return
    if isinstance(data, bytes):
        name = path if isinstance(path, str) else column.name
        builder.add_media(column.modality, name, partial(_given, data), column.supervised)
    elif data is None and isinstance(path, str):
        load = partial(read_media, path, root, column.modality)
        builder.add_media(column.modality, path, load, column.supervised)
    else:
        raise BadItemError("malformed record", f"column '{column.name}' has neither bytes nor path")


def _given(data: bytes, room: int) -> bytes:
    return data
