"""Finding, checking and pointing into YAML configs.

Notable:
- A name is first a path; only where no such file exists is it a bundled config.
- Bundled configs live in the wheel as `onn_lightning/configs/`; in a source checkout (editable
  install) they are the top-level `configs/`.
- Only plain YAML is read: a tag that would build a Python object is refused.
- `locate` gives the line of a key, so that an error can say `file.yaml:12`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from onn_lightning.cli.errors import UsageError, nearest, one_line

_PACKAGE = Path(__file__).resolve().parents[1]


def bundled_folder() -> Path:
    """Folder of the bundled configs: inside the package when installed, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def bundled_names() -> list[str]:
    """Names of the bundled configs, as `--config` takes them."""
    folder = bundled_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def bundled_list() -> str:
    """The bundled configs, for a message."""
    return f"bundled: {', '.join(bundled_names()) or 'none'}"


def find_config(name: str) -> Path:
    """The file that `--config name` means.

    Args:
        name: a path, or the name of a bundled config with or without `.yaml`.
    Raises:
        UsageError: if there is no such file; names the nearest bundled ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (name, f"{name}.yaml"):
        bundled = bundled_folder() / candidate
        if not path.is_absolute() and candidate in bundled_names():
            return bundled
    if path.is_dir():
        raise UsageError(f"--config {name}: is a folder, a YAML file is needed")
    near = nearest(name, bundled_names()) or nearest(path.name, bundled_names())
    raise UsageError(f"--config {name}: no such file, nor a bundled config{near}; {bundled_list()}")


def check_config(path: Path, known_keys: Sequence[str]) -> None:
    """Refuse a file that is not a mapping of known top-level keys in plain YAML.

    Args:
        path: the file.
        known_keys: top-level keys that the verb understands.
    Raises:
        UsageError: one line with file, line and reason.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise UsageError(f"{path}:{_line(error.problem_mark)}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}: not a mapping; a config has the keys {', '.join(known_keys)}")
    for key, _ in node.value:
        if key.value not in known_keys:
            line = key.start_mark.line + 1
            raise UsageError(f"{path}:{line}: unknown key '{key.value}'{nearest(str(key.value), known_keys)}")
    _refuse_duplicates(path, node)


@dataclass(frozen=True)
class Place:
    """Where a key stands in a config file.

    Args:
        line: counted from 1.
        keys: the way there as written in the file: `modalities[0]` for an element of a list, and
            without the `init_args` that a reader of the file would not find.
        value: what is written there, where it is a scalar.
    """

    line: int
    keys: tuple[str, ...]
    value: str | None


def locate(path: Path, keys: Sequence[str], value: str | None = None) -> Place | None:
    """Place of a nested key in a config file, None where the file does not have it.

    Args:
        path: the file.
        keys: from the top, as a message names them: without list indices and without the names of
            dictionary entries, which are searched through; `init_args` may be missing in the file.
        value: of several such places, take one where this is written.
    """
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    places = list(_places(node, list(keys), ())) if node is not None else []
    return next((place for place in places if place.value == value), places[0] if places else None)


def _places(node: yaml.Node, keys: list[str], way: tuple[str, ...]) -> Iterator[Place]:
    if isinstance(node, yaml.SequenceNode):
        for index, element in enumerate(node.value):
            yield from _places(element, keys, (*way[:-1], f"{way[-1]}[{index}]") if way else ())
    elif isinstance(node, yaml.MappingNode):
        entries = {key.value: (key, value) for key, value in node.value}
        if keys[0] in entries:
            key, value = entries[keys[0]]
            if len(keys) > 1:
                yield from _places(value, keys[1:], (*way, keys[0]))
            else:
                scalar = value.value if isinstance(value, yaml.ScalarNode) else None
                yield Place(key.start_mark.line + 1, (*way, keys[0]), scalar)
        elif keys[0] == "init_args" and len(keys) > 1:
            yield from _places(node, keys[1:], way)
        elif way:  # at the top every key is known by name
            for name, (_, value) in entries.items():
                yield from _places(value, keys, (*way, str(name)))


def _refuse_duplicates(path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _refuse_duplicates(path, element)
    elif isinstance(node, yaml.MappingNode):
        first: dict[object, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in first and name != "<<":
                raise UsageError(f"{path}:{line}: key '{name}' is already given in line {first[name]}")
            first[name] = line
            _refuse_duplicates(path, value)


def _line(mark: yaml.Mark | None) -> int | str:
    return mark.line + 1 if mark is not None else "?"


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = one_line(error.problem or error)
    if isinstance(error, yaml.constructor.ConstructorError):
        return f"only plain YAML is read, no tags that build objects ({problem})"
    context = f" ({one_line(error.context)})" if error.context else ""
    return f"not valid YAML: {problem}{context}"
