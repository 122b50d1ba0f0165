"""`GrowingJsonLines`: a JSON Lines file that somebody goes on writing to, read as it grows.

Notable:
- Documents are read in the order of their lines, each once; the loader's buffer alone shuffles them.
  (Blocks that are shuffled by themselves would have to end where every reader sees them end.)
- A line counts once its line feed is there: what is being written is not read halfway.
- Lines must not change once written; a file that became shorter is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datamodules.sources import JsonLines

_CHUNK_BYTES = 1 << 22
_BLANK_BYTES = 2  # no JSON object is as short as one byte and a line feed


class GrowingJsonLines(JsonLines):
    """A JSON Lines file that grows at its end; documents as in `JsonLines`.

    Args:
        path: the file; it may not exist yet.
        root: folder that media paths are relative to, and must stay in; None: the file's own folder.
        weight: share of the tokens of the training mixture.
    """

    follows = True

    def __init__(self, path: str | Path, root: str | Path | None = None, weight: float = 1.0) -> None:
        super().__init__(path, root, weight)
        self._line_bounds: np.ndarray | None = None
        self._document_lines = np.zeros(0, np.int64)

    @property
    def _bounds(self) -> np.ndarray:  # type: ignore[override]  # there read once, here as the file grows
        if self._line_bounds is None:
            self._line_bounds = np.zeros(1, np.int64)
            self.refresh()
        return self._line_bounds

    @property
    def _lines(self) -> np.ndarray:  # type: ignore[override]
        _ = self._bounds
        return self._document_lines

    @property
    def block_ends(self) -> Sequence[int]:
        return range(1, len(self) + 1)

    def indices_with(self, modality: str) -> Iterator[int]:
        if self.path.is_file():
            yield from (index for index in super().indices_with(modality) if index < len(self))

    def refresh(self) -> bool:
        """Look for further lines.

        Raises:
            ValueError: if the file became shorter.
        """
        known = len(self)
        begun = self._bounds[-1]
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < begun:
            raise ValueError(
                f"'{self.path}' had {begun} bytes and has {size} now: a file that is followed may only "
                "grow; restore it, or give it as an ordinary source"
            )
        if size > begun:
            ends = [np.zeros(0, np.int64)]
            with self.path.open("rb") as file:
                file.seek(begun)
                offset = begun
                while chunk := file.read(_CHUNK_BYTES):
                    ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset + 1)
                    offset += len(chunk)
            bounds = np.concatenate([self._bounds, *ends])
            lines = np.flatnonzero(np.diff(bounds[len(self._bounds) - 1 :]) > _BLANK_BYTES)
            self._document_lines = np.concatenate([self._document_lines, lines + len(self._bounds) - 1])
            self._line_bounds = bounds
        return len(self) > known
