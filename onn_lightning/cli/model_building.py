"""Where a config's model is built: with memory for its parameters, or on the meta device."""

from __future__ import annotations

import pkgutil
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import ModelParallelStrategy

from onn_lightning.module import OmniModule


def on_meta_device(module: type[OmniModule], *args: Any, **kwargs: Any) -> OmniModule:
    """Build a module without memory for its parameters."""
    with torch.device("meta"):
        return module(*args, **kwargs)


def builders(strategy: Any) -> list[tuple[Any, type, bool]]:
    """How jsonargparse is to build the model that a strategy will train, as `instantiate` takes it.

    A model that will be sharded is built on the meta device and gets its values in `configure_model`.

    Args:
        strategy: the trainer's argument as a config gives it: a name, or a class with its arguments.
    """
    if not isinstance(strategy, Namespace):
        return []
    kind = pkgutil.resolve_name(strategy.class_path)
    return [(on_meta_device, OmniModule, True)] if issubclass(kind, ModelParallelStrategy) else []
