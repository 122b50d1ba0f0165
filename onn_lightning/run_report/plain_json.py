"""Reading and writing the small JSON files of a run folder.

Notable:
- A reader, or a kill at any moment, finds the old file or the new one, never a torn one.
- What is read may come from anybody: it is bounded in size, and every value is asked for by its type, so
  that a wrong one is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onn_lightning.dashboard.files import write_whole

MAX_BYTES = 16 << 20
_LIMIT = 1 << 63


class UnreadableFileError(ValueError):
    """A file of a run folder cannot be used: the message says which and why."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write or replace a file.

    Args:
        path: its place; the folder is made if need be.
        content: plain data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Fields:
    """Read a file that holds one JSON object.

    Raises:
        UnreadableFileError: if it is none.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableFileError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFileError(f"{path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{path.name} is not JSON: {str(error)[:100]}") from error
    return Fields(content, path.name)


class Fields:
    """A JSON object whose values are asked for by name and type.

    Args:
        content: what was parsed.
        where: named in errors.
    Raises:
        UnreadableFileError: if the content is no object; every method, if a value is not of the type.
    """

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise UnreadableFileError(f"{where} is no JSON object")
        self.plain: dict[str, Any] = content
        self.where = where

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.plain.get(name, default)
        return value if isinstance(value, str) else self._refuse(name, "a string")

    def number(self, name: str, default: float = 0.0) -> float:
        """A number; of figures that went wrong NaN or infinite."""
        value = self.plain.get(name, default)
        return float(value) if _is_number(value) else self._refuse(name, "a number")

    def count(self, name: str, default: int = 0) -> int:
        """A whole number that is not negative."""
        value = self.plain.get(name, default)
        return value if _is_count(value) else self._refuse(name, "a whole number from 0 on")

    def optional_count(self, name: str) -> int | None:
        """A whole number, or None."""
        return None if self.plain.get(name) is None else self.count(name)

    def flag(self, name: str) -> bool:
        """Whether."""
        value = self.plain.get(name, False)
        return value if isinstance(value, bool) else self._refuse(name, "true or false")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.plain.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self._refuse(name, "a list of strings")
        return tuple(values)

    def text_by_name(self, name: str) -> dict[str, str]:
        """An object of strings."""
        return {key: self.inner(name).text(key) for key in self.inner(name).names()}

    def number_by_name(self, name: str) -> dict[str, float]:
        """An object of numbers."""
        return {key: self.inner(name).number(key) for key in self.inner(name).names()}

    def count_by_name(self, name: str) -> dict[str, int]:
        """An object of whole numbers."""
        return {key: self.inner(name).count(key) for key in self.inner(name).names()}

    def objects(self, name: str) -> list[Fields]:
        """A list of objects."""
        values = self.plain.get(name, [])
        if not isinstance(values, list):
            self._refuse(name, "a list")
        return [Fields(value, f"{self.where}: {name}[{place}]") for place, value in enumerate(values)]

    def object_by_name(self, name: str) -> dict[str, Fields]:
        """An object of objects."""
        inner = self.inner(name)
        return {key: inner.inner(key) for key in inner.names()}

    def names(self) -> list[str]:
        """Of all values."""
        return list(self.plain)

    def inner(self, name: str) -> Fields:
        """An object; empty where it is absent."""
        return Fields(self.plain.get(name, {}), f"{self.where}: {name}")

    def _refuse(self, name: str, expected: str) -> Any:
        raise UnreadableFileError(f"{self.where}: {name} is not {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (_is_int(value) and abs(value) < _LIMIT)


def _is_count(value: Any) -> bool:
    return _is_int(value) and 0 <= value < _LIMIT


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
