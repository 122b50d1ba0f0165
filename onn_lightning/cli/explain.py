"""From jsonargparse's long error messages to one line: what, where, and the nearest valid name.

jsonargparse reports a mistake as an indented tree: the path of keys down to the value, with every
type it tried on the way. The first leaf of that tree is the mistake as the user made it; the path to
it, found again in the config files, gives the file and the line. A message of an unknown form is
folded into one line as it is, so that a new version of jsonargparse can make messages worse but
never lose one.
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from onn_lightning.cli.config_files import locate
from onn_lightning.cli.errors import nearest, one_line

_KEY = re.compile(r"""^(?:- )?Parser key "([^"]+)":\s*(.*)$""")
_CLASS = re.compile(r"^(?:- )?Problem with given class_path '([^']+)':\s*(.*)$")
_CALLABLE = re.compile(r"^(?:- )?Type \S*Callable\[.*\] expects a function or a callable class: (.*)$")
_GIVEN_CLASS = re.compile(r"class_path='([^']+)'")
_NOISE = re.compile(
    r"^(?:- )?(Does not validate against|Subtypes: |Errors:|Given value|Expected a path but )"
)
_MAX_LENGTH = 300
# What configs choose by class_path; a verb that has not imported a kind has no key for it.
_KINDS = (
    ("lightning.pytorch", "Callback"),
    ("lightning.pytorch", "LightningModule"),
    ("lightning.pytorch", "LightningDataModule"),
    ("lightning.pytorch.loggers", "Logger"),
    ("onn_lightning.modality", "Modality"),
    ("torch.optim", "Optimizer"),
    ("datamodules.prepare.readers.base", "Reader"),
    ("datamodules.prepare.step", "Filter"),
    ("datamodules.prepare.executors.base", "Executor"),
)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """The first leaf of a jsonargparse message.

    Args:
        keys: path of config keys down to it.
        class_path: class whose arguments were being read there, or "".
        leaf: what jsonargparse says of it.
        given: the value that was given there, as jsonargparse prints it, or "".
    """

    keys: tuple[str, ...]
    class_path: str
    leaf: str
    given: str = ""


def explain(message: str, configs: Sequence[Path], arguments: Sequence[str], options: Iterable[str]) -> str:
    """One line for an error of the parser.

    Args:
        message: jsonargparse's own message.
        configs: config files of this command, in order.
        arguments: the command line.
        options: every option of the verb with a fixed name (`trainer.max_steps`).
    """
    mistake = find_mistake(message)
    keys, reason = _reason(mistake, list(options))
    value = mistake.class_path if keys[-1:] == ["class_path"] else mistake.given
    where, keys = _place(keys, value, configs, arguments)
    return "".join((where, f"{'.'.join(keys)}: " if keys else "", reason))


def find_mistake(message: str) -> Mistake:
    """Walk down a jsonargparse message to its first leaf."""
    keys: list[str] = []
    class_path = ""
    pending = [line.strip() for line in message.splitlines()]
    while pending:
        line = pending.pop(0)
        if match := _KEY.match(line):
            keys += match[1].split(".")
            rest = match[2]
        elif match := _CLASS.match(line):
            keys.append("init_args")
            class_path, rest = match[1], match[2]
        elif match := _CALLABLE.match(line):
            given = _GIVEN_CLASS.search(message)
            keys.append("init_args")
            class_path, rest = given[1] if given else "", match[1]
        elif not line or _NOISE.match(line):
            continue
        else:
            leaf = re.sub(r"\.? Got value: (Namespace\(|\{).*$", "", line.removeprefix("- "))
            if match := re.search(r"\. Got value: (.*)$", leaf):
                return Mistake(tuple(keys), class_path, leaf, match[1])
            values = [
                line.removeprefix("Given value: ") for line in pending if line.startswith("Given value: ")
            ]
            value = values[0].split(". Got value: ")[0] if values else ""
            return Mistake(tuple(keys), class_path, leaf, value)
        if rest:
            pending.insert(0, rest)
    return Mistake(tuple(keys), class_path, one_line(message)[:_MAX_LENGTH])


def _reason(mistake: Mistake, options: list[str]) -> tuple[list[str], str]:
    """Path of the wrong key, and what is wrong with it in our words."""
    keys, leaf = list(mistake.keys), mistake.leaf
    if match := re.fullmatch(r"Option '(.+)' is not accepted", leaf):
        return _unknown_key(keys, match[1], mistake.class_path)
    if match := re.fullmatch(r"Group '(.+)' does not accept option '(.+)'", leaf):
        return _unknown_key(keys, f"{match[1]}.{match[2]}", mistake.class_path)
    if match := re.fullmatch(r"Subcommand '.+' does not accept option '(.+)'", leaf):
        return match[1].split("."), f"unknown key{_nearest_option(match[1], options)}"
    if match := re.match(r"unrecognized arguments: (\S+)", leaf):
        option = match[1].lstrip("-").split("=")[0]
        if mistake.class_path:
            return _unknown_key(keys, option, mistake.class_path)
        what = "unknown option" if match[1].startswith("-") else "unexpected argument"
        return [], f"{what} '{match[1]}'{_nearest_option(option, options, prefix='--')}"
    if match := re.match(r"module '([^']+)' has no attribute '([^']+)'", leaf):
        hint = nearest(match[2], _names_in(match[1]))
        return _class_key(keys), f"no '{match[2]}' in module {match[1]}{hint}"
    if match := re.match(r"No module named '([^']+)'", leaf):
        return _class_key(keys), f"no module named '{match[1]}'{_nearest_module(match[1])}"
    if match := re.match(r"Import path (\S+) does not correspond to a subclass of (\S+)", leaf):
        return [*keys, "class_path"], f"'{match[1]}' is not a kind of {match[2]}"
    if match := re.match(r"the following arguments are required: (\S+)", leaf):
        missing = match[1].rstrip(",").split(".")
        missing = missing if keys else missing[1:] or missing  # at the top it begins with the verb
        return [*keys, *missing], "required, but not given"
    if match := re.match(r"Expected a dot import path string: (\S+)$", leaf):
        hint = nearest(match[1], _short_class_names())
        return keys, f"'{match[1]}' is no class path (package.module.Class){hint}"
    if match := re.match(r"Not a valid subclass of (\w+)", leaf):
        known = ("class_path", "init_args")
        wrong = [key for key in re.findall(r"'(\w+)':", mistake.given) if key not in known]
        hints = [f"'{key}'{hint}" for key in wrong if (hint := nearest(key, known))]
        found = f": unknown key {hints[0]}" if hints else ""
        return keys, f"expected class_path and init_args of a {match[1]}{found}"
    if match := re.match(r"Expected an? (.+?)(?:\. Got value: .*)?$", leaf):
        given = re.sub(r"^NestedArg\(.*val='(.*)'\)$", r"\1", mistake.given)
        is_scalar = given and not given.startswith(("{", "[", "Namespace("))  # others belong to an outer key
        got = f", got '{given[:80]}'" if is_scalar else ""
        return keys, f"expected {_type_name(match[1])}{got}"
    return keys, _type_name(leaf)[:_MAX_LENGTH]


def _unknown_key(keys: list[str], option: str, class_path: str) -> tuple[list[str], str]:
    *groups, name = option.split(".")
    try:
        kind: object = _import(class_path)
        while groups and groups[0] in _parameters(kind):
            kind = _type_of_parameter(kind, groups[0])
            keys = [*keys, groups.pop(0)]
    except (ImportError, AttributeError, NameError, TypeError, ValueError):
        return [*keys, *groups, name], "unknown key"
    wrong = groups[0] if groups else name
    return [*keys, wrong], f"unknown key{nearest(wrong, _parameters(kind))}"


def _class_key(keys: list[str]) -> list[str]:
    return [*keys[:-1], "class_path"] if keys and keys[-1] == "init_args" else [*keys, "class_path"]


def _nearest_option(word: str, options: list[str], prefix: str = "") -> str:
    hint = nearest(word, options)
    return hint.replace("'", f"'{prefix}", 1)


def _names_in(module: str) -> list[str]:
    """Public classes, functions and submodules of a module."""
    loaded = import_module(module)
    found = [name for name in dir(loaded) if name[0] != "_" and callable(getattr(loaded, name))]
    return found + [sub.name for sub in pkgutil.iter_modules(getattr(loaded, "__path__", []))]


def _short_class_names() -> list[str]:
    """Classes that jsonargparse would find by their bare name, of the kinds that configs choose."""
    kinds: list[type] = [getattr(sys.modules[home], name) for home, name in _KINDS if home in sys.modules]
    names = []
    while kinds:
        kind = kinds.pop()
        names.append(kind.__name__)
        kinds += type.__subclasses__(kind)
    return names


def _nearest_module(name: str) -> str:
    parent, _, _ = name.rpartition(".")
    try:
        spec = find_spec(parent) if parent else None
    except ImportError:
        spec = None
    if parent and (spec is None or spec.submodule_search_locations is None):
        return ""
    folders = list(spec.submodule_search_locations or ()) if spec else None
    start = f"{parent}." if parent else ""
    return nearest(name, [start + module.name for module in pkgutil.iter_modules(folders)])


def _type_name(text: str) -> str:
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def _place(
    keys: list[str], value: str, configs: Sequence[Path], arguments: Sequence[str]
) -> tuple[str, list[str]]:
    """`file:line: ` of the key (or that the command line has it), and the way to it as written there."""
    if not keys:
        return "", keys
    flat = [key for key in keys if key != "init_args"]
    for argument in arguments:
        option = argument.lstrip("-").split("=")[0].rstrip("+").split(".")
        if argument.startswith("--") and [key for key in option if key != "init_args"] == flat:
            return "command line: ", keys
    for config in reversed(configs):
        place = locate(config, keys, value)
        if place is not None:
            return f"{config}:{place.line}: ", list(place.keys)
    return "", keys


def _import(class_path: str) -> object:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _parameters(kind: object) -> list[str]:
    """Names that `init_args` of a class may have, following **kwargs up the class tree."""
    names: list[str] = []
    for base in inspect.getmro(kind) if isinstance(kind, type) else [kind]:
        function = base.__dict__.get("__init__") if isinstance(base, type) else base
        if function is None or not callable(function):
            continue
        parameters = list(inspect.signature(function).parameters.values())
        variadic = {p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        names += [p.name for p in parameters if p.name not in variadic and p.name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _type_of_parameter(kind: object, name: str) -> object:
    function = kind.__init__ if isinstance(kind, type) else kind  # type: ignore[misc]
    hint = typing.get_type_hints(function)[name]
    return next((choice for choice in typing.get_args(hint) if choice is not type(None)), hint)
