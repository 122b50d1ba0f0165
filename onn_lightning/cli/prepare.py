"""`onn prepare`: raw corpora -> a prepared data set, described by a config or by flags.

Notable:
- A config has the arguments of `datamodules.prepare.pipeline.Preparation` as its keys; each is a flag,
  too. `--config` takes a path or a bundled name, several times; later ones override.
- Without `sources`, `--input` names files or folders whose kind is found by looking at them.
- Needs no Lightning; a mistake is one line with file and line.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from datamodules.prepare.executors import LocalExecutor
from datamodules.prepare.pipeline import Preparation
from datamodules.prepare.pipeline_guess import guess_reader
from datamodules.prepare.readers import Reader
from onn_lightning.cli.config_files import bundled_list
from onn_lightning.cli.config_option import ConfigFile, first_outside_jsonargparse
from onn_lightning.cli.errors import EXIT_TERMINATED, UsageError
from onn_lightning.cli.explain import explain

DESCRIPTION = """\
Turn raw corpora - texts, JSON Lines, Parquet, images and sounds with captions, tar shards, Hugging Face
data sets - into a prepared data set: filtered, without copies, tokenized, in checksummed shards.
What is complete when it is interrupted is kept in <output>.partial; --resume goes on from there."""
EXAMPLES = """\
examples:
  onn prepare --config prepare_quickstart
  onn prepare --config prepare_quickstart --resume
  onn prepare --input data/quickstart/train/zh --output data/prepared/zh
  onn prepare --input pages.jsonl.zst --output data/prepared/pages --workers 4"""


OF_THE_COMMAND = frozenset({"config", "print_config", "input", "resume", "overwrite", "workers"})
"""Options that are no arguments of `Preparation`."""


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Types and defaults for every option, the description as it is written."""


class PrepareParser(ArgumentParser):
    """Parser that remembers which config files it read, for the place in an error message."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config_paths: list[Path] = []


def make_parser() -> PrepareParser:
    """The options of `onn prepare`."""
    parser = PrepareParser(
        prog="onn prepare",
        usage="onn prepare [--config CONFIG] [--input PATH ...] [--output FOLDER] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        action=ConfigFile,
        help="YAML config: a path or the name of a bundled one; repeatable, later ones override",
    )
    parser.add_argument(
        "--input",
        action="append",
        metavar="PATH",
        help="a file or folder to prepare, its kind is found by looking; repeatable",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what an earlier run has left")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the output once the new one is complete; forget an unfinished preparation",
    )
    parser.add_argument(
        "--workers", type=int | None, metavar="N", help="tasks at the same time (the executor's `workers`)"
    )
    parser.add_class_arguments(Preparation, skip={"output", "sources"})
    parser.add_argument("--output", type=str | None, metavar="FOLDER", help="folder to make")
    parser.add_argument("--sources", type=Mapping[str, Reader] | None, help="the corpora by name")
    return parser


def main(arguments: list[str]) -> int:
    """Run `onn prepare`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    parser = make_parser()
    try:
        options = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        known = [name.lstrip("-") for action in parser._actions for name in action.option_strings]
        raise UsageError(explain(str(error), parser.config_paths, arguments, known)) from error
    preparation = make_preparation(parser, options)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        summary = preparation.run(options.resume, options.overwrite)
    except (KeyboardInterrupt, SystemExit):
        kept = f"{preparation.output}.partial"
        if os.path.exists(kept):
            sys.stderr.write(f"what is complete is kept in {kept}; go on with --resume\n")
        raise
    for line in summary.lines():
        sys.stdout.write(f"{line}\n")
    return 0


def make_preparation(parser: ArgumentParser, options: Namespace) -> Preparation:
    """Build what the options describe; what a constructor says against its arguments arrives as it said it.

    Args:
        parser: of the options.
        options: as parsed.
    Raises:
        UsageError: if there is nothing to prepare, or no output.
    """
    if (options.sources is None) == (options.input is None):
        what = (
            "both `sources` and --input" if options.input else "nothing to prepare: give --config or --input"
        )
        raise UsageError(
            f"{what}; {bundled_list()}" if options.input is None else f"{what} are given: drop one"
        )
    if options.output is None:
        raise UsageError("no output given: add --output FOLDER")
    if options.workers is not None and options.executor is not None:
        options.executor.init_args.workers = options.workers
    try:
        built = parser.instantiate(options)
    except (ValueError, TypeError) as error:
        stated = first_outside_jsonargparse(error)
        if stated is error:
            raise
        raise stated from stated.__cause__
    arguments = {key: value for key, value in vars(built).items() if key not in OF_THE_COMMAND}
    if options.input is not None:
        arguments["sources"] = _named(options.input)
    if options.workers is not None and options.executor is None:
        arguments["executor"] = LocalExecutor(options.workers)
    return Preparation(**arguments)


def _named(paths: list[str]) -> dict[str, Reader]:
    """Readers by the name of their file or folder; a number tells the second of a name from the first."""
    sources: dict[str, Reader] = {}
    for path in paths:
        name = Path(path).resolve().name.split(".")[0]
        same = sum(other == name or other.rpartition("-")[0] == name for other in sources)
        sources[f"{name}-{same + 1}" if same else name] = guess_reader(path)
    return sources


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)
