"""`VerbParser`: argparse for the verbs that are not Lightning's; a mistake is one line."""

from __future__ import annotations

import argparse
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

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        near = nearest(unknown.split()[0], self._option_string_actions) if unknown != message else ""
        raise UsageError(f"{message}{near}; `{self.prog} --help` lists the options")
