"""Compressed files as streams of bounded pieces.

Notable:
- A piece is as large as was asked for, never as large as the file claims: a bomb costs time until it
  passes its limits, not memory.
- Everything before damage is given out before the error is raised.
- Frames and members that follow each other are one stream, as parallel compressors write them.
- The name decides what a file is, and content that contradicts it is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import zstandard

from datamodules.items import BadItemError
from datamodules.prepare.readers.limits import MIB, Limits

Codec = Literal["gzip", "zstd"]

CHUNK_BYTES = 1 << 18
"""What is read and handed on at once."""

_SUFFIXES: dict[str, Codec] = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".tzst": "zstd"}
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte 0x50..0x5f
_FREE_BYTES = 64 * MIB  # below this, no ratio is suspicious
_GZIP_AND_HEADER = 31  # zlib's code for the format with header and checksum
_ZSTD_WINDOW = 1 << 27  # bytes of history a frame may ask for: the format's own recommendation
_ZSTD_INPUT = 1 << 9  # four bytes can stand for 128 KiB: at most 16 MiB come out of this


def codec_of(name: str) -> Codec | None:
    """How a file of this name is compressed; None: it is not."""
    return next((codec for suffix, codec in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


def check_head(head: bytes, name: str) -> None:
    """Refuse a file whose first bytes contradict its name.

    Args:
        head: at least four bytes, if there are so many.
        name: of the file.
    Raises:
        BadItemError: if they do.
    """
    found: Codec | None = None
    if head.startswith(_GZIP_MAGIC):
        found = "gzip"
    elif head.startswith(_ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        found = "zstd"
    if found != codec_of(name):
        raise BadItemError(
            "misnamed file",
            f"the name says {codec_of(name) or 'uncompressed'}, the content {found or 'something else'}; "
            "rename the file or fetch it again",
        )


def expanded(chunks: Iterable[bytes], name: str, limits: Limits) -> Iterator[bytes]:
    """The content of a file, decompressed where its name says so.

    Args:
        chunks: of the file, from its beginning.
        name: of the file.
        limits: bounds of the growth.
    Yields:
        Non-empty pieces of about `CHUNK_BYTES`.
    Raises:
        BadItemError: misnamed, damaged, cut short, or grown beyond the limits.
    """
    codec = codec_of(name)
    checked = _with_checked_head(chunks, name)
    if codec is None:
        yield from checked
        return
    decompress = _gunzip if codec == "gzip" else _unzstd
    gathered: list[bytes] = []
    length = 0
    try:
        for piece in _bounded(checked, decompress, limits):
            gathered.append(piece)
            length += len(piece)
            if length >= CHUNK_BYTES:
                yield b"".join(gathered)
                gathered, length = [], 0
    except BadItemError:
        if gathered:
            yield b"".join(gathered)
        raise
    if gathered:
        yield b"".join(gathered)


def _with_checked_head(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    for number, chunk in enumerate(chunks):
        if number == 0:
            check_head(chunk[:4], name)
        yield chunk


def _bounded(
    chunks: Iterable[bytes], decompress: Callable[[Iterable[bytes]], Iterator[bytes]], limits: Limits
) -> Iterator[bytes]:
    consumed = produced = 0

    def counted() -> Iterator[bytes]:
        nonlocal consumed
        for chunk in chunks:
            consumed += len(chunk)
            yield chunk

    for piece in decompress(counted()):
        produced += len(piece)
        ratio = produced / consumed
        if produced > limits.expanded_bytes or (produced > _FREE_BYTES and ratio > limits.expansion):
            raise BadItemError(
                "expands too much",
                f"it has grown to {produced} bytes, {ratio:.0f} times what was read of it: perhaps a bomb; "
                "if it is honest, raise `limits.expansion` or `limits.expanded_bytes`",
            )
        yield piece


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decoder = zlib.decompressobj(_GZIP_AND_HEADER)
    between = True  # members
    for chunk in chunks:
        pending, full = chunk, False
        while pending or full:
            if between:
                pending = pending.lstrip(b"\0")  # tapes and block devices pad with zeros
                if not pending:
                    break
            piece = _decode(decoder.decompress, pending, CHUNK_BYTES)
            between = decoder.eof
            full = len(piece) == CHUNK_BYTES
            pending = decoder.unused_data if between else decoder.unconsumed_tail
            if between:
                decoder = zlib.decompressobj(_GZIP_AND_HEADER)
            if piece:
                yield piece
    if not between:
        raise _cut_short()


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    decoder = decompressor.decompressobj()
    between = True  # frames
    for chunk in chunks:
        for start in range(0, len(chunk), _ZSTD_INPUT):
            pending = chunk[start : start + _ZSTD_INPUT]
            while pending:
                piece = _decode(decoder.decompress, pending)
                between = decoder.eof
                pending = decoder.unused_data if between else b""
                if between:
                    decoder = decompressor.decompressobj()
                if piece:
                    yield piece
    if not between:
        raise _cut_short()


def _decode(decompress: Callable[..., bytes], *arguments: Any) -> bytes:
    try:
        return decompress(*arguments)
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadItemError(
            "damaged file", f"it cannot be decompressed from here on ({error}); fetch it again"
        ) from error


def _cut_short() -> BadItemError:
    return BadItemError("truncated file", "it ends in the middle of its compressed data; fetch it again")
