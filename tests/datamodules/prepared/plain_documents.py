"""Documents as plain data; a module of its own, so that a spawned process finds it by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.text.tokenizer import Encoding


def plain(document: Any) -> list[Any]:
    """A document as plain data, so that it can be compared."""
    return [
        (name, _columns(data) if isinstance(data, Encoding) else data, *rest)
        for name, data, *rest in document
    ]


def _columns(encoding: Encoding) -> list[list[int]]:
    columns = (encoding.char_ids, encoding.word_ids, encoding.previous_word_ids)
    assert all(column.dtype == np.int64 for column in columns)
    return [column.tolist() for column in columns]
