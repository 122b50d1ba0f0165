"""Documents as records: `{"items": [...]}` from any outside file, checked before anything trusts it.

Notable:
- Training sources and the readers of the offline pipeline share these checks: what one refuses, the
  other does.
- Media paths stay inside the corpus: an absolute path or a `..` that leaves its root is refused, since
  a data file from elsewhere must not choose which files of this machine are read. Symbolic links
  inside the root are followed: they are put there by the machine's owner.
- The image and audio modalities open a string as a path, so theirs come as "path" alone, which is checked.
- What is wrong is a `BadItemError`: a message for people and a kind to count it by. It does not say
  where; the caller knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onn_lightning.modality import BadSampleError

OPENS_PATHS = ("image", "audio")
"""Modalities that open a string as a path, wherever it came from."""


class BadItemError(BadSampleError):
    """What is wrong with a document, without its place.

    Args:
        kind: a few words that it is counted by.
        message: what exactly is wrong and what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # all arguments: the exception can be pickled
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class ItemRecord:
    """One item of a record, its form checked, its data not yet looked at.

    Args:
        modality: "text", "image", "audio" or that of a plug-in.
        form: which field held the data: one of the forms that `item_records` was asked for.
        raw: the data; a string for "text" and "path".
        supervised: False: read by the model, never predicted.
    """

    modality: str
    form: str
    raw: Any
    supervised: bool


def decode_text(data: bytes) -> str:
    """UTF-8, without the byte order mark.

    Raises:
        BadItemError: if it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        raise BadItemError(
            "invalid UTF-8",
            f"byte {error.start} is not valid UTF-8 ({error.reason}); convert it, e.g. with iconv",
        ) from error


def parse_json(data: bytes, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """One JSON value.

    Args:
        data: UTF-8.
        pairs_hook: makes the objects, as for `json.loads`; may raise `BadItemError`.
    Raises:
        BadItemError: if it is not UTF-8 or not JSON.
    """
    text = decode_text(data)
    try:
        return json.loads(text, object_pairs_hook=pairs_hook)
    except BadItemError:  # of the hook
        raise
    except (ValueError, RecursionError) as error:  # too many digits or brackets are refused, too
        raise BadItemError("broken JSON", f"is not valid JSON ({error}); mend or remove it") from error


def item_records(record: Any, forms: tuple[str, ...] = ("text", "path", "value")) -> list[ItemRecord]:
    """The items of a record `{"items": [...]}`, in reading order.

    Args:
        record: an object with a list of objects, each with a `modality`, one of the forms and perhaps
            `supervised`.
        forms: fields that may hold the data.
    Raises:
        BadItemError: if it has another shape.
    """
    items = record.get("items") if isinstance(record, dict) else None
    if not isinstance(items, list) or not items:
        raise BadItemError("malformed record", 'must be an object with a non-empty list "items"')
    return [_item_record(item, forms, f"item {number}") for number, item in enumerate(items, 1)]


def _item_record(item: Any, forms: tuple[str, ...], where: str) -> ItemRecord:
    if not isinstance(item, dict) or not isinstance(item.get("modality"), str):
        raise BadItemError("malformed record", f'{where}: must be an object with a string "modality"')
    given = [key for key in forms if key in item]
    if len(given) != 1:
        allowed = " and ".join([", ".join(f'"{form}"' for form in forms[:-1]), f'"{forms[-1]}"'])
        raise BadItemError("malformed record", f"{where}: needs one of {allowed}, has {given or 'none'}")
    supervised = item.get("supervised", True)
    if not isinstance(supervised, bool):
        raise BadItemError(
            "malformed record", f'{where}: "supervised" must be true or false, is {supervised!r}'
        )
    form, raw = given[0], item[given[0]]
    if form in ("text", "path") and not isinstance(raw, str):
        raise BadItemError("malformed record", f'{where}: "{form}" must be a string, is {type(raw).__name__}')
    if isinstance(raw, str) and form in ("text", "value") and item["modality"] in OPENS_PATHS:
        raise BadItemError(
            "unsafe path", f'{where}: an item of modality "{item["modality"]}" names its file as "path"'
        )
    return ItemRecord(item["modality"], form, raw, supervised)


def path_below(name: str, root: Path) -> Path:
    """The file that a record names.

    Args:
        name: relative path out of the record.
        root: folder that it must stay in.
    Raises:
        BadItemError: if it leaves the root, or is no path at all.
    """
    relative = os.path.normpath(name)
    if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir or "\0" in name:
        raise BadItemError("unsafe path", f"path {name!r} leaves '{root}'; move it there or set `root`")
    return root / relative
