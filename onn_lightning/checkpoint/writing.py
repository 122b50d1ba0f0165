"""Writing a checkpoint file: complete under its name, or not there at all.

Notable: where a write fails, torch goes on to close its archive, which fails for another reason; what is
told is the first one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from datamodules.prepared.durable import durable_stream
from onn_lightning.checkpoint.folders import give_name, hidden


def write(checkpoint: Mapping[str, Any], path: Path, stop: threading.Event | None = None) -> None:
    """Write a checkpoint beside its place, flush it, and give it its name; one of that name is replaced.

    Args:
        checkpoint: plain data and tensors.
        path: in a folder that exists.
        stop: set by another thread to have the writing given up.
    Raises:
        OSError: if the disk is full or cannot be written; what was there before is intact.
        KeyboardInterrupt: if the user stops it, or the event is set; what was there before is intact.
    """
    beside = hidden(path) if path.is_dir() else path  # a file is not renamed over a folder
    with durable_stream(beside) as stream:
        try:
            torch.save(
                dict(checkpoint), stream if stop is None else cast(IO[bytes], _Stoppable(stream, stop))
            )
        except (OSError, RuntimeError) as error:
            reason = _first_reason(error)
            if isinstance(reason, OSError):
                raise OSError(
                    reason.errno,
                    f"cannot write '{path}' ({reason.strerror}): make room or correct the permissions, then "
                    "run the same command again; checkpoints that were finished before are intact",
                ) from error
            if isinstance(reason, KeyboardInterrupt):
                raise reason from None
            raise
    if beside != path:
        give_name(beside, path)


class _Stoppable:
    """The part of a stream that `torch.save` uses, which ends at the next write once the event is set."""

    def __init__(self, stream: IO[bytes], stop: threading.Event) -> None:
        self._stream, self._stop = stream, stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise KeyboardInterrupt
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _first_reason(error: BaseException) -> BaseException | None:
    """The failed write or the interrupt that led to an error, None where it is neither."""
    reason: BaseException | None = error
    while not isinstance(reason, OSError | KeyboardInterrupt | None):
        reason = reason.__context__
    return reason
