"""What the verbs that reshape a checkpoint share: reading it, its size, writing it, and how to go on."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onn_lightning.cli.errors import UsageError
from onn_lightning.cli.generate import find_checkpoint

if TYPE_CHECKING:
    from onn_lightning.modality import Modality
    from onn_lightning.module import OmniModule
    from onn_lightning.nn import TrunkConfig


@dataclass(frozen=True)
class Model:
    """A checkpoint and what it describes.

    Args:
        path: its file.
        checkpoint: its content.
        trunk: shape of its trunk.
        modalities: its modalities.
    """

    path: Path
    checkpoint: Mapping[str, Any]
    trunk: TrunkConfig
    modalities: list[Modality]

    def module(self) -> OmniModule:
        """The module with the checkpoint's weights, in evaluation mode, in float32 or better."""
        from onn_lightning.checkpoint import description
        from onn_lightning.module import OmniModule

        module = OmniModule(self.trunk, self.modalities)
        description.restore_weights(module, self.checkpoint, self.path)
        return module.eval()


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`, `--output`, `--force`, `--trust`."""
    parser.add_argument("--checkpoint", required=True, type=Path, help="checkpoint file or run folder")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    parser.add_argument(
        "--trust",
        action="extend",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="packages from which the checkpoint may name modality classes (importing them runs their code)",
    )


def read_model(path: Path, trusted_packages: tuple[str, ...]) -> Model:
    """Read the checkpoint that an option names.

    Args:
        path: a file or a run folder.
        trusted_packages: packages from which it may name modality classes.
    Raises:
        UsageError, CheckpointError: if there is none, or it cannot be used.
    """
    from onn_lightning.checkpoint import description

    path = find_checkpoint(path)
    checkpoint = description.read(path)
    trunk, modalities = description.restore(checkpoint, path, trusted_packages=trusted_packages)
    return Model(path, checkpoint, trunk, modalities)


def check_output(path: Path, force: bool) -> None:
    """Refuse an output before any work is done.

    Raises:
        UsageError: if its folder is not there, or the file is and may not be replaced.
    """
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.parent}, make it first")
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder: give the name of a file")
    if path.exists() and not force:
        raise UsageError(f"--output {path} is there already: give another name, or --force to replace it")


def size_of(module: OmniModule) -> str:
    """Parameters, and operations of the weights' products in a forward pass."""
    from onn_lightning.flops import trunk_forward_flops

    parameters = sum(parameter.numel() for parameter in module.parameters())
    flops = trunk_forward_flops(module.trunk.config, 0)
    line = f"{parameters:,} parameters, {flops / 1e6:,.2f} MFLOPs a token in the trunk"
    heads = {
        name: 2 * sum(weight.numel() for weight in head.parameters() if weight.ndim == 2)
        for name, head in module.heads.items()
    }
    return line + "".join(f", {flops / 1e6:,.2f} to predict one of {name}" for name, flops in heads.items())


def way_on(old: Model, new: Model) -> str:
    """The command that goes on training from a reshaped checkpoint."""
    folder = old.path.parent.parent
    config = folder / "config.yaml"
    is_run = config.is_file()
    words = ["onn", "fit", "--config", str(config) if is_run else "CONFIG"]
    words += ["--run", f"{folder.name}-{new.path.stem}" if is_run else "NAME", "--ckpt_path", str(new.path)]
    if new.trunk != old.trunk:
        words += ["--model.init_args.trunk.num_layers", str(new.trunk.num_layers)]
        words += ["--model.init_args.trunk.intermediate_size", json.dumps(new.trunk.intermediate_size)]
    if any(one is not other for one, other in zip(old.modalities, new.modalities, strict=True)):
        words += ["--data.init_args.modalities", _as_config(new)]
    return shlex.join(words)


def _as_config(model: Model) -> str:
    from onn_lightning.checkpoint import description

    described = description.describe(model.trunk, model.modalities)["modalities"]
    return json.dumps([{key: entry[key] for key in ("class_path", "init_args")} for entry in described])
