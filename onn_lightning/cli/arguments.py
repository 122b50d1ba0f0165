"""Argparse for the verbs that are not Lightning's: a mistake is one line, options may change a config."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from onn_lightning.cli.errors import UsageError, nearest


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
