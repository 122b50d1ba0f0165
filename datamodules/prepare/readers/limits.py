"""`Limits`: how much one document, and one compressed file, may take."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What exceeds one of these is a bad sample, and is never held in memory.

    Args:
        text_bytes: UTF-8 bytes of a document's text.
        media_bytes: compressed bytes of all media of a document together.
        expansion: times its size that a compressed file may grow, once it has passed 64 MiB. Prose
            grows 3 to 5 times, logs and tables up to 100; a bomb about 1,000 (gzip) or 30,000 times.
        expanded_bytes: bytes that any one compressed file may grow to.
    Raises:
        ValueError: if a limit is not positive.
    """

    text_bytes: int = 16 * MIB
    media_bytes: int = 64 * MIB
    expansion: float = 250.0
    expanded_bytes: int = 1 << 40

    def __post_init__(self) -> None:
        for name in ("text_bytes", "media_bytes", "expansion", "expanded_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"limits: {name} is {getattr(self, name)}, it must be positive")

    @property
    def record_bytes(self) -> int:
        r"""Bytes of a JSON record: `\uXXXX` writes the same text in up to three times the bytes."""
        return 3 * self.text_bytes + MIB // 16
