"""A checkpoint written by hand, outside training: complete under its name, or not there at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datamodules.prepared.durable import durable_stream


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, flush it, and give it its name; a file of that name is replaced.

    Args:
        checkpoint: plain data and tensors.
        path: in a folder that exists.
    Raises:
        OSError: if the disk is full or cannot be written; what was there before is intact.
    """
    with durable_stream(path) as stream:
        torch.save(dict(checkpoint), stream)
