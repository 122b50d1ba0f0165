"""Files that a viewer may open at any moment."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write beside and rename: whoever looks sees the old file or the new one, never a part.

    Args:
        path: the file; its folder exists.
        content: all of it.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
