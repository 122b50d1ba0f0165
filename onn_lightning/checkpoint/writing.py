"""A checkpoint written by hand, outside training: complete under its name, or not there at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, flush it, and give it its name; a file of that name is replaced.

    Args:
        checkpoint: plain data and tensors.
        path: in a folder that exists.
    Raises:
        OSError: if the disk is full or cannot be written; what was there before is intact.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with open(beside, "wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
