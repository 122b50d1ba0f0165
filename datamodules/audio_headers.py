"""Lies in the headers of sound files that libsndfile would read over.

Notable:
- RIFF/WAVE, RF64, W64, AIFF and AU: a file that holds less than it declares, where libsndfile reads what is
  there and says nothing. FLAC and CAF it checks itself; Ogg and MP3 declare nothing reliable.
- The placeholders that streaming encoders leave (sizes near 2 or 4 GiB) are no lie: such a file is read to
  its end.
- WAVE: blocks that cannot hold the declared channels of the declared width. Nothing else in the file tells
  which of them is wrong, and a wrong guess is noise.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

COMPLETE = 0.95
"""Share of what is declared below which a file counts as cut short (headers may round)."""

CUT_SHORT = "is cut short: it holds less than its header declares"

_UNKNOWN_LENGTH = 0x7FFF_F000  # from here on, sizes are the placeholders of streaming encoders
_PCM, _FLOAT = 1, 3  # format tags whose blocks are plain samples


def header_problem(stream: BinaryIO) -> str | None:
    """What is wrong with a file's header, None where nothing can be seen.

    Args:
        stream: the file; its position does not matter and is not kept.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(12)
    if head[:4] == b".snd" and len(head) == 12:
        offset, length = struct.unpack(">II", head[4:])
        return _cut_short(length, size - offset)
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _in_chunks(stream, size, "<4sI", b"data")
    if head == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb":
        return _in_w64_chunks(stream, size)
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _in_chunks(stream, size, ">4sI", b"SSND")
    return None


def _in_chunks(stream: BinaryIO, size: int, layout: str, samples: bytes) -> str | None:
    """Walk over the chunks as far as that of the samples."""
    long_length = None  # RF64 has it in a chunk of its own
    while len(chunk := stream.read(8)) == 8:
        kind, length = struct.unpack(layout, chunk)
        start = stream.tell()
        if kind == samples:
            return _cut_short(length if long_length is None else long_length, size - start)
        if kind == b"ds64" and len(content := stream.read(16)) == 16:
            long_length = struct.unpack("<QQ", content)[1]
        if kind == b"fmt " and len(content := stream.read(16)) == 16:
            tag, channels, _, _, block, bits = struct.unpack("<HHIIHH", content)
            if tag in (_PCM, _FLOAT) and not _is_block(block, channels, bits):
                found = f"{channels} channels of {bits} bits in {block} bytes"
                return f"has a header that contradicts itself: {found}"
        stream.seek(start + length + length % 2)
    return None


def _in_w64_chunks(stream: BinaryIO, size: int) -> str | None:
    """The same of W64, whose chunks have names and lengths of 24 bytes together, which the lengths count."""
    start = 40  # behind the names of file and form and the length of the file
    while stream.seek(start) < size and len(chunk := stream.read(24)) == 24:
        (length,) = struct.unpack("<Q", chunk[16:])
        if chunk[:4] == b"data" or length < 24:
            return _cut_short(length, size - start)
        start += length + -length % 8
    return None


def _cut_short(declared: int, there: int) -> str | None:
    is_known = declared < _UNKNOWN_LENGTH or declared > 0xFFFF_FFFF
    return CUT_SHORT if is_known and there < COMPLETE * declared else None


def _is_block(block: int, channels: int, bits: int) -> bool:
    """Whether a block is one sample of each channel; 17 to 31 bits may stand in four bytes."""
    return block == channels * -(-bits // 8) or (16 < bits < 32 and block == channels * 4)
