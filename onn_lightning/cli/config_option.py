"""`--config` of the verbs that read YAML: a path or a bundled name, checked before it is parsed."""

from __future__ import annotations

from typing import Any

from jsonargparse import ActionConfigFile

from onn_lightning.cli.config_files import check_config, find_config


class ConfigFile(ActionConfigFile):
    """Refuses a file that is no plain YAML with known keys; the parser's `config_paths` remembers it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        path = find_config(str(values))
        keys = {action.dest.split(".")[0] for action in parser._actions}
        check_config(path, sorted(keys - {"help", "config", "print_config"}))
        parser.config_paths.append(path)
        super().__call__(parser, namespace, str(path), option_string)
