"""Training that goes on after its network was reshaped in mid-run: stop, build anew, resume.

Notable:
- Optimizers, DDP and FSDP hold on to the parameters that they were made with. So nothing is exchanged under
  them: a reshaped checkpoint is written, training stops, and everything is built again around the new shape,
  in the same processes. For the run it is a resume like any other.
- Whoever reshapes raises `NetworkReshaped` in all processes of the run, at the end of the same step; whoever
  builds catches it (`fit_growing`, and `onn fit`).
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from onn_lightning.checkpoint import description
from onn_lightning.checkpoint.description import CheckpointError
from onn_lightning.checkpoint.going_on import GoesOnFrom
from onn_lightning.nn import TrunkConfig

Result = TypeVar("Result")


class NetworkReshaped(GoesOnFrom):
    """Training stopped between two steps because its network was reshaped."""


def fit_growing(
    fit: Callable[[TrunkConfig | None, Path | None], Result], checkpoint: Path | None = None
) -> Result:
    """Train, and build anew and train on as often as the network is reshaped, or rolled back, in mid-run.

    ```
    def fit(trunk, checkpoint):
        module = OmniModule(trunk or TrunkConfig(hidden_size=256), modalities)
        trainer = Trainer(callbacks=[PIMonitor(), GrowOnPlateau()], max_steps=10_000)
        trainer.fit(module, OmniDataModule(...), ckpt_path=checkpoint)
        return trainer

    trainer = fit_growing(fit)
    ```

    Args:
        fit: builds module, data, callbacks and trainer from the beginning and trains. It is given the shape
            of the trunk and the checkpoint to go on from, or None twice where training begins.
        checkpoint: go on from this one at first.
    Returns:
        What `fit` returned when it ended by itself.
    """
    while True:
        trunk = None if checkpoint is None else trunk_of(checkpoint)
        try:
            return fit(trunk, checkpoint)
        except GoesOnFrom as stopped:
            checkpoint = stopped.checkpoint
        gc.collect()  # trainer, loops and module refer to each other: the old network would stay in memory


def trunk_of(checkpoint: Path) -> TrunkConfig:
    """The shape of the trunk of a checkpoint.

    Raises:
        CheckpointError: if it cannot be read.
    """
    return description.trunk_config(description.read(checkpoint, mmap=True)[description.KEY]["trunk"])


def followed(written: TrunkConfig, checkpoint: Mapping[str, Any], path: Path) -> TrunkConfig:
    """The trunk of a config, in the shape to which the checkpoint's network has come since.

    A config says how a run began. If its network was reshaped since, the checkpoint has another shape, and
    its history holds the one of the config.

    Args:
        written: as the config has it.
        checkpoint: to go on from, as `description.read` returns it.
        path: its file, for messages.
    Returns:
        `written`, with the checkpoint's blocks and feed-forward sizes where the checkpoint was once of the
        written shape; as it is for a checkpoint that was never reshaped.
    Raises:
        CheckpointError: if the checkpoint was reshaped and never had the written shape.
    """
    history = [description.trunk_config(entry["trunk"]) for entry in description.history(checkpoint)]
    now = description.trunk_config(checkpoint[description.KEY]["trunk"])
    if not history or _shape(written) == _shape(now):
        return written
    if _shape(written) not in [_shape(trunk) for trunk in history]:
        raise CheckpointError(
            f"{path} has {in_words(now)} and began with {in_words(history[0])}, the config has "
            f"{in_words(written)}, a shape that it never had: write one of the two into the config, or take "
            "another checkpoint"
        )
    return dataclasses.replace(written, num_layers=now.num_layers, intermediate_size=now.intermediate_size)


def in_words(trunk: TrunkConfig) -> str:
    """The shape of a trunk, for a message."""
    sizes = trunk.feed_forward_sizes
    shown = str(sizes[0]) if len(set(sizes)) == 1 else str(list(sizes))
    blocks = "1 block" if trunk.num_layers == 1 else f"{trunk.num_layers} blocks"
    return f"{blocks} of width {trunk.hidden_size} with {shown} feed-forward neurons"


def _shape(trunk: TrunkConfig) -> tuple[object, ...]:
    """All that decides about the shapes of parameters."""
    head_dim = trunk.head_dim or trunk.hidden_size // trunk.num_heads
    heads = (trunk.num_heads, trunk.num_kv_heads or trunk.num_heads, head_dim)
    return trunk.hidden_size, *heads, trunk.feed_forward_sizes
