"""The config of a run: as it was saved, and what sets it apart from the bundled one it started from.

Notable:
- Which config a run started from, its command line says (`record.json`). Only bundled configs are compared:
  any other file may have changed since.
- Compared is what the bundled configs set, and what the command line names. All other fields of the saved
  config are defaults, written out.
- Read by `yaml.safe_load` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onn_lightning.cli.config_files import bundled_folder, bundled_names
from onn_lightning.run_report.plain_json import UnreadableFileError

FILE = "config.yaml"
MAX_BYTES = 1 << 20
ABSENT = "not set"
_OF_ONE_START = {"run", "ckpt_path", "weights_only", "trainer.default_root_dir"}


@dataclass(frozen=True)
class Settings:
    """The saved config.

    Args:
        text: of the file.
        values: parsed.
    """

    text: str
    values: Mapping[str, Any]

    def at(self, *keys: str) -> Any:
        """The value under nested keys, None where there is none."""
        node: Any = self.values
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node


@dataclass(frozen=True)
class Difference:
    """A field that differs.

    Args:
        field: its way through the config, by dots.
        bundled: its value in the bundled config.
        here: in this run.
    """

    field: str
    bundled: str
    here: str


def load_settings(folder: Path) -> Settings:
    """The config of a run folder.

    Raises:
        UnreadableFileError: if it is missing or no plain YAML mapping.
    """
    path = folder / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableFileError(f"{FILE} is larger than {MAX_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except OSError as error:
        raise UnreadableFileError(f"{FILE}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{FILE} is no plain YAML: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise UnreadableFileError(f"{FILE} is no mapping")
    return Settings(text, values)


def bundled_origin(command: Sequence[str]) -> list[str]:
    """The configs that a command line names, where all of them are bundled; else nothing.

    Args:
        command: arguments of `onn`.
    """
    named = []
    for place, argument in enumerate(command):
        option, is_assigned, value = argument.partition("=")
        if option in ("--config", "-c"):
            named.append(value if is_assigned else next(iter(command[place + 1 :]), ""))
    bundled = set(bundled_names())
    files = [name if name in bundled else f"{name}.yaml" for name in named]
    return files if files and bundled.issuperset(files) else []


def differences(settings: Settings, origin: Sequence[str], command: Sequence[str]) -> list[Difference]:
    """What sets a config apart from bundled ones.

    Args:
        settings: of the run.
        origin: names of the bundled configs, later ones overriding.
        command: arguments of `onn`, for fields that no bundled config sets.
    """
    bundled: dict[str, str] = {}
    for name in origin:
        bundled |= _flat(yaml.safe_load((bundled_folder() / name).read_text(encoding="utf-8")))
    here = _flat(settings.values)
    named = {argument.partition("=")[0].lstrip("-") for argument in command if argument.startswith("--")}
    fields = [field for field in here if field in bundled or _short(field) in named or field in named]
    fields += [field for field in bundled if field not in here]
    return [
        Difference(field, bundled.get(field, ABSENT), here.get(field, ABSENT))
        for field in fields
        if field not in _OF_ONE_START and not _same(bundled.get(field, ABSENT), here.get(field, ABSENT))
    ]


def _same(one: str, other: str) -> bool:
    """Also of numbers that are written in different ways."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def _short(field: str) -> str:
    """As the command line may name it."""
    return field.replace(".init_args", "")


def _flat(node: Any, way: str = "") -> dict[str, str]:
    """Every value by its way."""
    return dict(_leaves(node, way))


def _leaves(node: Any, way: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{way}.{key}" if way else str(key))
    elif isinstance(node, list) and any(isinstance(value, Mapping | list) for value in node):
        for number, value in enumerate(node):
            yield from _leaves(value, f"{way}[{number}]")
    else:
        yield way, str(node)
