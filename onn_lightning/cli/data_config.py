"""The DataModule of a training config, built without its model and trainer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datamodules import OmniDataModule
from onn_lightning.cli.config_files import bundled_list
from onn_lightning.cli.config_option import ConfigFile, first_outside_jsonargparse
from onn_lightning.cli.errors import UsageError
from onn_lightning.cli.explain import explain
from onn_lightning.cli.lightning_cli import OmniArgumentParser

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
    parser = OmniArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ConfigFile)
    parser.add_lightning_class_args(OmniDataModule, "data", subclass_mode=True)
    for key, kind in OTHER_KEYS.items():
        parser.add_argument(f"--{key}", type=kind)
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
        data: OmniDataModule = parser.instantiate(parsed).data
    except (ValueError, TypeError) as error:
        stated = first_outside_jsonargparse(error)
        if stated is error:
            raise
        raise stated from stated.__cause__
    return data
