"""Lines of a stream of bytes, of bounded length, and of one byte range of a file.

Notable:
- Lines end at LF and nowhere else: NEL, VT, FS and U+2028 occur in real text.
- A range holds the lines that BEGIN in it, so that ranges side by side give every line once, wherever
  they were cut.
- A longer line than allowed is passed over without being gathered.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

TO_THE_END = sys.maxsize


def lines(
    chunks: Iterable[bytes], start: int, stop: int, max_bytes: int, in_line: bool = False
) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin in a range.

    Args:
        chunks: of the file, from byte `start`.
        start: byte at which the chunks begin.
        stop: byte before which a line must begin.
        max_bytes: length of the longest line.
        in_line: the chunks begin within a line, which is not of this range.
    Yields:
        (byte at which the line begins, the line without its LF; None: it is too long).
    """
    begin = position = start
    held: list[bytes] = []  # parts of the line that is being gathered
    length = 0
    for chunk in chunks:
        position += len(chunk)
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            length += len(piece)
            if not in_line:
                yield begin, _line(held, piece, length, max_bytes)
            begin += length + 1
            held, length, in_line = [], 0, False
            if begin >= stop:
                return
        length += len(rest)
        if in_line:
            if position >= stop:
                return  # no line begins here
        elif length <= max_bytes:
            held.append(rest)
        else:
            held = []
    if length and not in_line:
        yield begin, _line(held, b"", length, max_bytes)


def _line(held: list[bytes], last: bytes, length: int, max_bytes: int) -> bytes | None:
    if length > max_bytes:
        return None
    return b"".join([*held, last]) if held else last
