"""`onn fetch`: obtain the data that a bundled config trains on.

Notable: what is already there and intact is left alone; an interrupted fetch goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onn_lightning.cli.arguments import VerbParser
from onn_lightning.cli.errors import UsageError, nearest

DATASETS = ("quickstart",)


def main(arguments: list[str]) -> int:
    """Run `onn fetch`.

    Args:
        arguments: what follows the verb.
    Raises:
        UsageError: for a data set that there is no recipe for.
    """
    parser = VerbParser("fetch", description="Obtain the data of a bundled config.")
    parser.add_argument("dataset", help=f"what to obtain: {', '.join(DATASETS)}")
    parser.add_argument("--to", type=Path, help="folder to make (default: data/<dataset>)")
    options = parser.parse_args(arguments)
    if options.dataset not in DATASETS:
        hint = nearest(options.dataset, DATASETS)
        raise UsageError(
            f"no recipe for the data set '{options.dataset}'{hint}; there is: {', '.join(DATASETS)}"
        )

    from datamodules import quickstart

    to: Path = options.to or Path("data") / options.dataset
    quickstart.fetch(to, progress=_show)
    _show(f"data in {to}; sources and licences in {to / 'LICENSES'}")
    return 0


def hint(message: str) -> str:
    """What to add to a message about a missing file that `onn fetch` would obtain, or ""."""
    for dataset in DATASETS:
        if f"data/{dataset}" in message and ("No such file" in message or "does not exist" in message):
            return f" (`onn fetch {dataset}` obtains it)"
    return ""


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # a download takes a while; whoever reads a pipe should see it too
