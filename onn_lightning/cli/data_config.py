"""What a training config describes, built without a trainer: its data, or data and model without memory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules import OmniDataModule
from onn_lightning.cli.config_files import bundled_list
from onn_lightning.cli.config_option import ConfigFile, first_outside_jsonargparse
from onn_lightning.cli.errors import UsageError
from onn_lightning.cli.explain import explain
from onn_lightning.cli.lightning_cli import OmniArgumentParser, share_modalities
from onn_lightning.cli.model_building import on_meta_device
from onn_lightning.module import OmniModule

OTHER_KEYS = {
    "model": dict,  # a plain dict: with `Any`, jsonargparse would build the classes that it names
    "trainer": dict,
    "seed_everything": bool | int | None,
    "run": str | None,
    "resume": bool | None,
    "ckpt_path": str | None,
    "weights_only": bool | None,
    "verbose": bool | None,
    "return_predictions": bool | None,
}
"""What a training config may hold beside `data`, and its type; read over here."""


def build_data(prog: str, configs: Sequence[str], overrides: Sequence[str]) -> OmniDataModule:
    """Make the DataModule that `onn fit` would make.

    Args:
        prog: the command, for its usage line.
        configs: paths or bundled names; later ones override.
        overrides: further arguments, as `--data.init_args.row_length 64`.
    Raises:
        UsageError: if a config or an override is wrong; one line with the place.
        ValueError, TypeError: what a constructor says against its arguments.
    """
    parser = _parser(prog)
    for key, kind in OTHER_KEYS.items():
        parser.add_argument(f"--{key}", type=kind)
    data: OmniDataModule = _built(parser, configs, overrides).data
    return data


@dataclass(frozen=True)
class Outline:
    """A training run without its trainer.

    Args:
        data: the DataModule; nothing of its sources was read.
        model: the module, its parameters on the meta device.
        trainer: arguments of the trainer as the config gives them.
    """

    data: OmniDataModule
    model: OmniModule
    trainer: Mapping[str, Any]


def build_outline(prog: str, configs: Sequence[str], overrides: Sequence[str]) -> Outline:
    """Make data and model as `onn fit` would, but without memory for the parameters.

    Args, raises: as `build_data`.
    """
    parser = _parser(prog)
    parser.add_lightning_class_args(OmniModule, "model", subclass_mode=True)
    share_modalities(parser)
    for key, kind in OTHER_KEYS.items():
        if key != "model":
            parser.add_argument(f"--{key}", type=kind)
    built = _built(parser, configs, overrides, [(on_meta_device, OmniModule, True)])
    return Outline(built.data, built.model, built.trainer or {})


def _parser(prog: str) -> OmniArgumentParser:
    parser = OmniArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ConfigFile)
    parser.add_lightning_class_args(OmniDataModule, "data", subclass_mode=True)
    return parser


def _built(
    parser: OmniArgumentParser,
    configs: Sequence[str],
    overrides: Sequence[str],
    instantiators: Sequence[tuple[Any, type, bool]] = (),
) -> Any:
    """Everything that the config names, instantiated; `instantiators` as jsonargparse takes them."""
    arguments = [argument for config in configs for argument in ("--config", config)]
    arguments += overrides
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        options = [name.lstrip("-") for action in parser._actions for name in action.option_strings]
        line = explain(str(error), parser.config_paths, arguments, options)
        if not configs:
            line = f"no --config given ({bundled_list()}); {line}"
        raise UsageError(line) from error
    try:
        return parser.instantiate(parsed, instantiators=instantiators)
    except (ValueError, TypeError) as error:
        stated = first_outside_jsonargparse(error)
        if stated is error:
            raise
        raise stated from stated.__cause__
