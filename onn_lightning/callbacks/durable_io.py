"""`DurableCheckpointIO`: how Lightning's trainer writes and reads the single files of a run's checkpoints.

Notable:
- A file is complete under its name or not there at all, at any moment of a kill, a full disk or a power cut.
  Lightning's own goes by way of TMPDIR, is torn where that is another file system, and flushes nothing.
- A save may be written in the background (`Saves.next_save`): the training goes on once the state is copied.
- Reading executes nothing and compares checksums (`checkpoint.reading`); there is no way to turn that off.
- Files of this machine and of mounted ones only. Strategies that write shards do so themselves.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import CheckpointIO

from onn_lightning.checkpoint import folders, reading, writing
from onn_lightning.checkpoint.background import Saves
from onn_lightning.checkpoint.reading import CheckpointError
from onn_lightning.checkpoint.snapshot import snapshot
from onn_lightning.distributed import ShardedStrategy


class DurableCheckpointIO(CheckpointIO):
    """Plugin of the trainer: `Trainer(plugins=[DurableCheckpointIO()])`; `onn fit` has it by default."""

    def __init__(self) -> None:
        self.saves = Saves()

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
        self.saves.save(
            partial(_write, checkpoint, file), lambda: partial(_write, snapshot(checkpoint), file)
        )

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
        """Remove a checkpoint; one that is gone already is no error, and none is ever half there."""
        folders.remove(_local(path))

    def teardown(self) -> None:
        """The end of the trainer: nothing is left under way."""
        self.saves.wait()


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


def wait_for_writes(trainer: Trainer) -> None:
    """Return when this process writes no checkpoint: for whoever looks at the files of the run.

    Args:
        trainer: of the run.
    Raises:
        OSError: if the last one failed.
    """
    if (saves := saves_of(trainer.strategy)) is not None:
        saves.wait()


def saves_of(strategy: Any) -> Saves | None:
    """The saves of a trainer; None where somebody else's code writes its checkpoints, when it is asked to.

    Args:
        strategy: of the trainer.
    """
    if saves_shards(strategy):
        return strategy.saves if isinstance(strategy, ShardedStrategy) else None
    io = strategy.checkpoint_io
    return io.saves if isinstance(io, DurableCheckpointIO) else None


def saves_shards(strategy: Any) -> bool:
    """Whether a strategy writes a folder of shards by itself, instead of one file by way of the plugin.

    Args:
        strategy: of a trainer.
    """
    # Lightning has no public question for it
    sharded_fsdp = getattr(strategy, "_state_dict_type", None) == "sharded"
    return sharded_fsdp or bool(getattr(strategy, "_save_distributed_checkpoint", False))


def _write(
    checkpoint: dict[str, Any],
    file: Path,
    stop: threading.Event,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    writing.write(checkpoint, file, stop)


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise CheckpointError(
            f"{path}: checkpoints are written to folders, not to addresses: mount it, or set "
            "trainer.plugins to lightning.pytorch.plugins.TorchCheckpointIO"
        )
    return Path(path)
