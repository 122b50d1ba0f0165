"""`DocumentBuilder`: gathers the items of one document and refuses what no step could use.

Notable:
- Limits hold while items are added: a document that is too large is given up before the rest of it is
  loaded.
- NUL bytes and lone surrogates are refused: the first mean that the file is not text, the second
  cannot be written as UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.data import Document

from datamodules.items import BadItemError, path_below
from datamodules.media import open_media
from datamodules.prepare.document import Item, pack
from datamodules.prepare.readers.limits import Limits
from onn_lightning.modality import BadSampleError

Load = Callable[[int], bytes]
"""Gives the content of a medium; told how many bytes it may have."""


class DocumentBuilder:
    """One document in the making.

    Args:
        limits: of its text and its media.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._items: list[Item] = []
        self._text_bytes = 0
        self._media_bytes = 0
        self._has_content = False

    def add_text(self, text: str, supervised: bool = True) -> None:
        """Add text, as it is.

        Raises:
            BadItemError: if it is too long or no text.
        """
        if "\0" in text:
            place = text.index("\0")
            raise BadItemError("NUL byte", f"character {place} is NUL: this is not text; remove it")
        try:
            self._text_bytes += len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as error:
            raise BadItemError(
                "lone surrogate", f"character {error.start} is half a surrogate pair, which no UTF-8 text has"
            ) from error
        if self._text_bytes > self._limits.text_bytes:
            raise text_too_long(self._limits)
        self._has_content = self._has_content or not (text == "" or text.isspace())
        self._items.append(Item("text", text=text, supervised=supervised))

    def add_media(self, modality: str, name: str, load: Load, supervised: bool = True) -> None:
        """Add the content of a media file.

        Args:
            modality: "image", "audio" or that of a plug-in.
            name: what it is called in messages.
            load: gives the content.
            supervised: False: read by the model, never predicted.
        Raises:
            BadItemError: if it is empty, too large, or cannot be loaded.
        """
        room = self._limits.media_bytes - self._media_bytes
        data = load(room)
        if not data:
            raise BadItemError("unusable media", f"{modality} '{name}' is empty (0 bytes); fetch it again")
        if len(data) > room:
            raise media_too_large(name, self._limits)
        self._media_bytes += len(data)
        self._has_content = True
        self._items.append(Item(modality, media=data, supervised=supervised, name=name))

    def add_value(self, modality: str, value: Any, supervised: bool = True) -> None:
        """Add plain JSON.

        Raises:
            BadItemError: if the value cannot be written as JSON.
        """
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadItemError("malformed record", f"a value of modality '{modality}': {error}") from error
        self._has_content = True
        self._items.append(Item(modality, value=value, supervised=supervised))

    def document(self, document_id: str, source: str) -> Document:
        """The finished document.

        Raises:
            BadItemError: if there is nothing in it.
        """
        if not self._has_content:
            raise BadItemError("no text", "it holds no text and no media; remove it")
        return pack(self._items, document_id, source)


def read_media(name: str, root: Path, modality: str, room: int) -> bytes:
    """A media file that a record names.

    Args:
        name: its path, relative to the root.
        root: folder that it must stay in.
        modality: what it should hold, for messages.
        room: bytes that may be held; of a larger file one more is read.
    Raises:
        BadItemError: if it leaves the root or cannot be read.
    """
    try:
        with open_media(path_below(name, root), modality) as (_, stream):
            return stream.read(room + 1)
    except BadItemError:
        raise
    except BadSampleError as error:
        raise BadItemError("unusable media", str(error)) from error


def text_too_long(limits: Limits) -> BadItemError:
    """The error for a document whose text exceeds the limit."""
    return BadItemError(
        "text too long",
        f"it holds more than {limits.text_bytes} bytes of text; split it, or raise `limits.text_bytes`",
    )


def media_too_large(name: str, limits: Limits) -> BadItemError:
    """The error for a document whose media exceed the limit."""
    return BadItemError(
        "media too large",
        f"with '{name}' its media exceed {limits.media_bytes} bytes; shrink them, or raise "
        "`limits.media_bytes`",
    )
