"""Argparse for the verbs that are not Lightning's: a mistake is one line, options may change a config."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from onn_lightning.cli.errors import UsageError, nearest

_NUMBER = r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3, "t": 4}


class VerbParser(argparse.ArgumentParser):
    """Raises `UsageError` with the nearest option instead of printing its usage page.

    Args:
        verb: name of the verb.
        kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(self, verb: str, **kwargs: Any) -> None:
        super().__init__(prog=f"onn {verb}", allow_abbrev=False, **kwargs)

    def parse_with_overrides(
        self, arguments: Sequence[str], keys: Sequence[str]
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the verb's own options and leave those that change the config.

        Args:
            arguments: what follows the verb.
            keys: of a config, whose fields may be given: `data` for `--data.init_args.row_length 64`.
        Returns:
            the options, and the other arguments in their order.
        Raises:
            UsageError: for an option that is neither.
        """
        options, overrides = self.parse_known_args(arguments)
        for argument in overrides:
            if argument.startswith("-") and re.split("[.=]", argument.removeprefix("--"))[0] not in keys:
                self.error(f"unrecognized arguments: {argument}")
        return options, overrides

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        near = nearest(unknown.split()[0], self._option_string_actions) if unknown != message else ""
        raise UsageError(f"{message}{near}; `{self.prog} --help` lists the options")


def positive(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got '{text}'")
    return int(text)


def above_zero(text: str) -> float:
    """A number above 0, without a unit.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return number


def amount(text: str) -> float:
    """Read `1500000` or `1.5M`.

    Raises:
        argparse.ArgumentTypeError: for anything else, and for nothing at all.
    """
    match = re.fullmatch(_NUMBER + "([kmgbt]?)", text, re.IGNORECASE)
    if match is None or not float(match[1]) > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0, such as 1500000 or 1.5M")
    return float(match[1]) * 1000.0 ** _POWERS[match[2].lower()]


def memory(text: str) -> float:
    """Read `8000000000`, `8GB` or `8GiB`: bytes.

    Raises:
        argparse.ArgumentTypeError: for anything else, and for nothing at all.
    """
    match = re.fullmatch(_NUMBER + "(?:([kmgt])(i?))?b?", text, re.IGNORECASE)
    if match is None or not float(match[1]) > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of bytes, such as 8000000000, 8GB or 8GiB")
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** _POWERS[(match[2] or "").lower()]
