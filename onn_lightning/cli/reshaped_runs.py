"""Runs whose network was reshaped since: the model is built in the shape of the checkpoint.

Notable:
- The config stays as the user wrote it: it says how the run began. The checkpoint's history holds that shape,
  and by that the two are known to belong together.
- A checkpoint that cannot be read here is left to whoever loads it, who says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from onn_lightning.checkpoint import description
from onn_lightning.checkpoint.description import CheckpointError
from onn_lightning.cli.errors import UsageError
from onn_lightning.reshaping.rebuild import followed

_TRUNK = "model.init_args.trunk"


def in_shape_of(checkpoint: str | None, config: Namespace) -> Namespace:
    """A verb's config with the trunk's shape of the checkpoint that it goes on from.

    Args:
        checkpoint: None: there is none.
        config: of the verb, parsed; not changed.
    Raises:
        UsageError: if the checkpoint was reshaped and never had the config's shape; names both.
    """
    written: Any = config.get(_TRUNK)
    if checkpoint is None or not isinstance(written, Namespace) or not Path(checkpoint).exists():
        return config
    try:
        content = description.read(checkpoint, mmap=True)
    except CheckpointError:
        return config
    try:
        trunk = followed(description.trunk_config(written.as_dict()), content, Path(checkpoint))
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    changed: Namespace = config.clone()
    for name in ("num_layers", "intermediate_size"):
        changed[f"{_TRUNK}.{name}"] = getattr(trunk, name)
    return changed
