"""`DurableCheckpointIO`: how Lightning's trainer writes and reads the single files of a run's checkpoints.

Notable:
- A file is complete under its name or not there at all, at any moment of a kill, a full disk or a power cut.
  Lightning's own goes by way of TMPDIR, is torn where that is another file system, and flushes nothing.
- Reading executes nothing and compares checksums (`checkpoint.reading`); there is no way to turn that off.
- Files of this machine and of mounted ones only. Strategies that write shards do so themselves.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import CheckpointIO

from onn_lightning.checkpoint import reading, writing
from onn_lightning.checkpoint.reading import CheckpointError


class DurableCheckpointIO(CheckpointIO):
    """Plugin of the trainer: `Trainer(plugins=[DurableCheckpointIO()])`; `onn fit` has it by default."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, or leave what was there.

        Args:
            checkpoint: plain data and tensors.
            path: its file; folders are made.
            storage_options: None; there are none.
        Raises:
            OSError: if the disk is full or cannot be written.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options is {storage_options!r}: {type(self).__name__} has none")
        file = _local(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        writing.write(checkpoint, file)

    def load_checkpoint(  # type: ignore[override]
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: its file.
            map_location: device to load to.
            weights_only: True or None; either way nothing but plain data and tensors is read.
        Raises:
            CheckpointError: if the file is missing, damaged, holds more than that, or is asked to be trusted.
        """
        if weights_only is False:
            raise CheckpointError(
                f"{path}: not read with weights_only=False, which would run whatever code is in the file; "
                "leave that out: checkpoints of `onn fit` hold plain data and tensors"
            )
        content = reading.load(_local(path), map_location)
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: not a checkpoint, it holds a {type(content).__name__}")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; one that is gone already is no error."""
        file = _local(path)
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)


def with_durable_io(given: Any, strategy: Any) -> list[Any]:
    """The plugins of a config, with our way of writing checkpoints where it has none of its own.

    Args:
        given: the trainer's argument: None, a plugin, or several.
        strategy: the trainer's argument: a name, or a strategy, which may bring such a plugin too.
    """
    plugins = [] if given is None else [*given] if isinstance(given, list | tuple) else [given]
    own = [*plugins, getattr(strategy, "_checkpoint_io", None)]
    is_brought = any(isinstance(plugin, CheckpointIO) for plugin in own)
    return plugins if is_brought else [*plugins, DurableCheckpointIO()]


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise CheckpointError(
            f"{path}: checkpoints are written to folders, not to addresses: mount it, or set "
            "trainer.plugins to lightning.pytorch.plugins.TorchCheckpointIO"
        )
    return Path(path)
