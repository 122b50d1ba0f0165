"""What the bytes of a prepared data set depend on, as plain data, and how two of them differ.

Notable:
- What a config chooses is described as a config does, by its class and arguments (see `configured`); other
  objects among the arguments, such as modalities, by their state.
- A file that the state names (a word list, a checkpoint) counts by its content, too (`with_contents`).
- No times and no machine: the description is part of the result, whose bytes depend on neither.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.prepare.configured import Configured

_CLASS = "class_path"
_ARGUMENTS = "init_args"


def description(value: Any) -> Any:
    """A value of a config as JSON.

    Args:
        value: plain data, a path, an array, a dataclass or an object.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} {description(value.tobytes())}"
    if isinstance(value, Mapping):
        return {str(key): description(each) for key, each in value.items()}
    if isinstance(value, Set):
        return sorted((description(each) for each in value), key=str)
    if isinstance(value, Sequence):
        return [description(each) for each in value]
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, type) or hasattr(value, "__qualname__"):  # classes and functions
        return f"{value.__module__}.{value.__qualname__}"
    kind = type(value)
    path = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Configured):
        return {_CLASS: path, _ARGUMENTS: description(value.arguments)}
    if is_dataclass(value):
        return description({field.name: getattr(value, field.name) for field in fields(value)})
    return {_CLASS: path, **description(vars(value) if hasattr(value, "__dict__") else {})}


def with_contents(described: Any) -> Any:
    """A description in which whatever names a file has the file's content beside it.

    Args:
        described: by `description`; not of a corpus, whose files are the plan's affair.
    """
    if isinstance(described, dict):
        return {key: with_contents(value) for key, value in described.items()}
    if isinstance(described, list):
        return [with_contents(value) for value in described]
    if isinstance(described, str) and os.path.isfile(described):  # False also for what is no file's name
        with open(described, "rb") as file:
            return f"{described} (sha256:{hashlib.file_digest(file, 'sha256').hexdigest()})"
    return described


def first_difference(before: Any, now: Any) -> str | None:
    """Name the first key in which two descriptions differ, with both values; None: they are equal."""
    return next(_differences(before, now, ""), None)


def _differences(before: Any, now: Any, key: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict) and before.get(_CLASS) == now.get(_CLASS):
        for name in [*before, *(name for name in now if name not in before)]:
            inner = f"{key}.{name}" if key else name
            if name not in now:
                yield f"`{inner}` is no longer there"
            elif name not in before:
                yield f"`{inner}` is new"
            else:
                yield from _differences(before[name], now[name], inner)
        if list(before) != list(now):
            yield f"the order of `{key}` was {', '.join(before)}, now it is {', '.join(now)}"
    elif isinstance(before, list) and isinstance(now, list):
        for number, (old, new) in enumerate(zip(before, now, strict=False)):
            yield from _differences(old, new, f"{key}[{number}]")
        if len(before) != len(now):
            yield f"`{key}` had {len(before)} entries, now it has {len(now)}"
    elif before != now:
        yield f"`{key}` was {_short(before)}, now it is {_short(now)}"


def _short(value: Any) -> str:
    return str(value[_CLASS]) if isinstance(value, dict) and _CLASS in value else repr(value)
