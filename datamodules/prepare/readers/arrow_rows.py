"""Rows of Arrow tables as records.

Notable:
- A table is validated before its rows are touched: offsets out of a damaged file would otherwise be
  followed. Where a table is bad, its rows are tried one by one.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from datamodules.items import BadItemError

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1024


def batch_rows(rows: int, size: int) -> int:
    """How many rows to hold at once.

    Args:
        rows: of the table or row group.
        size: of all of them, decompressed, in bytes.
    """
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))


def records(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any] | BadItemError]:
    """The rows as plain Python; an error in the place of each that is damaged."""
    try:
        table.validate(full=True)
        return table.to_pylist()
    except pa.ArrowInvalid:
        return [_record(table.slice(row, 1)) for row in range(table.num_rows)]


def _record(row: pa.Table | pa.RecordBatch) -> dict[str, Any] | BadItemError:
    try:
        row.validate(full=True)
        return row.to_pylist()[0]
    except pa.ArrowInvalid as error:
        kind = "invalid UTF-8" if "UTF8" in str(error) else "damaged row"
        return BadItemError(kind, f"the row cannot be read ({error}); mend or remove it")
