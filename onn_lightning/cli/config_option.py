"""What all verbs that read YAML share: `--config`, and whose error a failed construction is."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import ActionConfigFile

from onn_lightning.cli.config_files import check_config, find_config


class ConfigFile(ActionConfigFile):
    """`--config`: a path or a bundled name, checked before jsonargparse reads it.

    Refuses a file that is no plain YAML with known keys; the parser's `config_paths` remembers it.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        path = find_config(str(values))
        keys = {action.dest.split(".")[0] for action in parser._actions}
        check_config(path, sorted(keys - {"help", "config", "print_config"}))
        parser.config_paths.append(path)
        super().__call__(parser, namespace, str(path), option_string)


def first_outside_jsonargparse(error: BaseException) -> BaseException:
    """The constructor's own error inside those that jsonargparse wraps around it."""
    package = str(Path(jsonargparse.__file__).parent)
    inner: BaseException | None = error
    while inner is not None:
        files = [frame.filename for frame in traceback.extract_tb(inner.__traceback__)]
        if files and not files[-1].startswith(package):
            return inner
        inner = inner.__cause__
    return error
