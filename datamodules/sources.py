"""Raw corpora as numbered documents: `TextFiles` and `JsonLines`.

Notable:
- A source is map-style and read on demand; what it keeps in memory is an index (16 bytes a line),
  never the corpus. Making one touches no disk: the first `len()` indexes, so that a config can be
  printed on a machine without the data.
- Whatever is wrong with one document is a `BadSampleError` that names file, line and remedy; whatever
  is wrong with the corpus (missing, empty) is a `ValueError` or `FileNotFoundError`.
- Lines end at LF and nowhere else: `str.splitlines` would also cut at NEL, VT, FS and U+2028, which
  occur in real text.
- Records are checked by `datamodules.items`: a media path never leaves its root.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from datamodules.items import ItemRecord, decode_text, item_records, parse_json, path_below
from onn_lightning.document import Document, RawItem
from onn_lightning.modality import BadSampleError, Modality

_CHUNK_BYTES = 1 << 22
_BLANK_BYTES = 2  # no JSON object is as short as one byte and a line feed


class Source(ABC):
    """A corpus of numbered documents.

    Args:
        weight: share of the TOKENS of the training mixture, relative to the other sources.
    Raises:
        ValueError: if the weight is not a positive number.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"source weight must be a positive number, got {weight}; or leave it out")
        self.weight = weight

    @abstractmethod
    def __len__(self) -> int:
        """Number of documents, at least one.

        Raises:
            FileNotFoundError: if the corpus is not there.
            ValueError: if it is empty.
        """

    @abstractmethod
    def __getitem__(self, index: int) -> Document:
        """Read one document.

        Raises:
            BadSampleError: if it cannot be used.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where a document stands, for messages: a path, with the line where there are several."""

    @abstractmethod
    def indices_with(self, modality: str) -> Iterator[int]:
        """Documents that seem to hold an item of a modality, found without decoding media."""

    def check(self, modalities: Mapping[str, Modality]) -> None:  # noqa: B027  # most need no check
        """Refuse to be read with modalities that the corpus was not made for.

        Raises:
            ValueError: naming both sides, e.g. the fingerprints of two tokenizers.
        """

    def fingerprint(self, documents: int | None = None) -> str:
        """What the first so many documents are, as far as that is known without reading them.

        Args:
            documents: how many; None: all. Of a source that grows, those that some block ends with.
        """
        return str(len(self) if documents is None else documents)

    @property
    def block_ends(self) -> Sequence[int]:
        """Ends of the blocks of documents that are shuffled each by itself; the last is `len(self)`.

        A source that grows gets a block for every part that was added; others are one block.
        """
        return (len(self),)

    @property
    def follows(self) -> bool:
        """Whether the corpus may grow while it is read: every document is then read once, not in epochs."""
        return False

    def refresh(self) -> bool:
        """Look for documents that were added at the end; documents never change their numbers.

        Returns:
            Whether there are new ones.
        """
        return False


class TextFiles(Source):
    """A folder of UTF-8 text files, each one document.

    Args:
        path: the folder, or a single file.
        pattern: which files of the folder, as in `pathlib.Path.glob`; `**/*.txt` descends.
        weight: share of the tokens of the training mixture.
    """

    def __init__(self, path: str | Path, pattern: str = "*.txt", weight: float = 1.0) -> None:
        super().__init__(weight)
        self.path = Path(path)
        self.pattern = pattern

    @cached_property
    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise FileNotFoundError(f"text folder '{self.path}' does not exist: obtain it, or correct `path`")
        files = sorted(file for file in self.path.glob(self.pattern) if file.is_file())
        if not files:
            raise ValueError(f"no file in '{self.path}' matches '{self.pattern}': correct one of the two")
        return files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Document:
        where = self.describe(index)
        try:
            data = self._files[index].read_bytes()  # bytes: text mode would rewrite CR LF
        except OSError as error:
            raise BadSampleError(f"{where}: cannot be read ({error.strerror}); check the file") from error
        try:
            text = decode_text(data)
        except BadSampleError as error:
            raise BadSampleError(f"{where}: {error}") from error
        if not text.strip():
            raise BadSampleError(f"{where}: holds no text; remove the file")
        return [("text", text)]

    def describe(self, index: int) -> str:
        return str(self._files[index])

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter(range(len(self)) if modality == "text" else ())


class JsonLines(Source):
    """A JSON Lines file, one interleaved document a line.

    A line is `{"items": [...]}`; an item names its `modality` and holds its data as `text` (a string),
    `path` (a file below `root`) or `value` (any JSON, for modalities whose raw form is plain numbers).
    `"supervised": false` makes it context: read, never predicted. Example:
    `{"items": [{"modality": "image", "path": "img/1.png"}, {"modality": "text", "text": "seven"}]}`

    Args:
        path: the file.
        root: folder that media paths are relative to, and must stay in; None: the file's own folder.
        weight: share of the tokens of the training mixture.
    """

    def __init__(self, path: str | Path, root: str | Path | None = None, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.path = Path(path)
        self.root = self.path.parent if root is None else Path(root)

    @cached_property
    def _bounds(self) -> np.ndarray:
        """[lines + 1] byte offsets at which the lines of the file begin, and its end."""
        if not self.path.is_file():
            raise FileNotFoundError(f"JSON Lines file '{self.path}' does not exist: correct `path`")
        starts, offset = [np.zeros(1, np.int64)], 0
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (offset + 1))
                offset += len(chunk)
        bounds = np.concatenate(starts)
        return bounds if bounds[-1] == offset else np.append(bounds, offset)

    @cached_property
    def _lines(self) -> np.ndarray:
        """[documents] number of the line, from 0, of each document: blank lines are none."""
        lines = np.flatnonzero(np.diff(self._bounds) > _BLANK_BYTES)
        if not len(lines):
            raise ValueError(f"'{self.path}' is empty: every line must be a JSON object with `items`")
        return lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Document:
        where = self.describe(index)
        line = self._lines[index]
        start, end = self._bounds[line], self._bounds[line + 1]
        with self.path.open("rb") as file:  # opened anew: a shared descriptor's offset is shared over a fork
            file.seek(start)
            data = file.read(end - start)
        try:
            return [self._item(item) for item in item_records(parse_json(data))]
        except BadSampleError as error:
            raise BadSampleError(f"{where}: {error}") from error

    def _item(self, item: ItemRecord) -> RawItem:
        return item.modality, self._media(item.raw) if item.form == "path" else item.raw, item.supervised

    def _media(self, name: str) -> str:
        path = path_below(name, self.root)
        if not path.is_file():
            raise BadSampleError(f"'{path}' does not exist; restore the file or remove the line")
        return str(path)

    def describe(self, index: int) -> str:
        return f"{self.path}:{self._lines[index] + 1}"

    def indices_with(self, modality: str) -> Iterator[int]:
        pattern = re.compile(rb'"modality"\s*:\s*' + re.escape(json.dumps(modality).encode()))
        with self.path.open("rb") as file:
            for line, data in enumerate(file):  # binary files iterate by LF only
                if pattern.search(data):
                    yield int(np.searchsorted(self._lines, line))
