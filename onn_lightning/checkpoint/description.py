"""A module described as plain data inside its checkpoint, and made again from it.

Notable:
- Nothing in a file is executed (`reading.py`).
- A class named inside a file is imported only from our own packages or from those the caller trusts:
  importing a module runs it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onn_lightning.checkpoint import reading
from onn_lightning.checkpoint.older import in_todays_shapes
from onn_lightning.checkpoint.reading import CheckpointError, first_line
from onn_lightning.modality import Modality
from onn_lightning.nn import SBLForm, TrunkConfig, YarnScaling

KEY = "onn_lightning"
"""Key of the description inside a checkpoint."""

FORMAT = 1
OUR_PACKAGES = ("onn_lightning", "datamodules")


def describe(
    trunk: TrunkConfig, modalities: Sequence[Modality], history: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The module's making as plain data (numbers, strings, lists, tensors of bytes).

    Args:
        trunk: shape of the tower.
        modalities: those of the run.
        history: as the function `history` returns it.
    Raises:
        TypeError: if a modality was made with an argument that is not plain data.
    """
    return {
        "format": FORMAT,
        "trunk": dataclasses.asdict(trunk),
        "modalities": [
            {
                "class_path": f"{type(modality).__module__}.{type(modality).__qualname__}",
                "init_args": {
                    name: _plain(value, f"{type(modality).__name__}.{name}")
                    for name, value in modality.init_args.items()
                },
                "assets": {
                    name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
                    for name, content in modality.assets().items()
                },
            }
            for modality in modalities
        ],
        "history": [dict(entry) for entry in history],
    }


def history(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How the network of a checkpoint was reshaped so far, the oldest first.

    Returns:
        One entry a reshaping: "step", the optimizer step at which it was done; "what", one line; "trunk", the
        shape of the trunk before, as plain data. Empty for a file of before there was a history.
    """
    return [dict(entry) for entry in checkpoint.get(KEY, {}).get("history", ())]


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise TypeError(
        f"{where} is a {type(value).__name__}: a modality's arguments must be plain data (numbers, strings, "
        "lists, dictionaries), so that a checkpoint can hold them"
    )


def read(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of ours: nothing in it is executed, its checksums are compared.

    Args:
        path: its file.
        map_location: device to load to.
        mmap: leave the numbers of tensors in the file until they are used, not compared; to the CPU only.
    Raises:
        CheckpointError: if the file is missing, damaged, not ours, or holds more than plain data and tensors.
    """
    checkpoint = reading.load(path, map_location, mmap)
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path}: not a checkpoint of onn_lightning (no '{KEY}' entry)")
    return checkpoint


def restore(
    checkpoint: Mapping[str, Any],
    path: str | Path,
    modalities: list[Modality] | None = None,
    trusted_packages: tuple[str, ...] = (),
) -> tuple[TrunkConfig, list[Modality]]:
    """The trunk's config and the modalities that a checkpoint describes.

    Args:
        checkpoint: as `read` returns it.
        path: its file, for messages.
        modalities: take these instead of making those described.
        trusted_packages: packages, beside ours, from which classes may be imported.
    Raises:
        CheckpointError: for an unknown format, a class from a package that is not trusted, or a description
            that makes no model.
    """
    described = checkpoint[KEY]
    try:
        if described.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: format {described.get('format')}, this version reads {FORMAT}: install the version "
                "that wrote it"
            )
        trunk = trunk_config(described["trunk"])
        if modalities is None:
            packages = OUR_PACKAGES + trusted_packages
            modalities = [_make(entry, path, packages) for entry in described["modalities"]]
        return trunk, modalities
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its description of the model cannot be used ({first_line(error)}); take an intact "
            "checkpoint, or install the version that wrote it"
        ) from error


def trunk_config(plain: Mapping[str, Any]) -> TrunkConfig:
    """The shape of a trunk out of plain data.

    Args:
        plain: as `describe` and `history` hold it.
    """
    parts = dict(plain)
    if parts["yarn"] is not None:
        parts["yarn"] = YarnScaling(**parts["yarn"])
    return TrunkConfig(**parts | {"sbl": SBLForm(**parts["sbl"])})


def restore_weights(module: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Load the weights of a checkpoint into the module made from its description.

    Args:
        module: receives the weights.
        checkpoint: as `read` returns it.
        path: its file, for messages.
    Raises:
        CheckpointError: if names or shapes differ.
    """
    try:
        module.load_state_dict(in_todays_shapes(checkpoint, module)["state_dict"])
    except (RuntimeError, TypeError) as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(
            f"{path}: its weights do not fit the model it describes ({lines[:300]}); take an intact "
            "checkpoint"
        ) from error


def _make(entry: Mapping[str, Any], path: str | Path, packages: tuple[str, ...]) -> Modality:
    module_name, _, class_name = entry["class_path"].rpartition(".")
    if module_name.split(".")[0] not in packages:
        raise CheckpointError(
            f"{path} names the class {entry['class_path']}, from a package that is not trusted: pass "
            f"trusted_packages=('{module_name.split('.')[0]}',) (command line: --trust) if you know it"
        )
    try:
        modality_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} needs {entry['class_path']}, which cannot be imported: {error}"
        ) from error
    if not (isinstance(modality_class, type) and issubclass(modality_class, Modality)):
        raise CheckpointError(f"{path} names {entry['class_path']}, which is not a Modality")
    assets = {name: bytes(content.cpu().numpy()) for name, content in entry["assets"].items()}
    return modality_class.from_assets(entry["init_args"], assets)
