"""`onn report`: one self-contained HTML page of a run.

Notable:
- Reads what `onn fit` left in the run folder, of a run that is finished, going on or was stopped; what is
  missing is named on the page.
- Reading the options needs no torch: `--help` and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from onn_lightning.cli.arguments import VerbParser
from onn_lightning.cli.errors import UsageError, nearest

FILE = "report.html"
RUNS = Path("runs")
EXAMPLES = """examples:
  onn report runs/quickstart
  onn report runs/quickstart --output quickstart.html

The page needs no other file and no network. It holds the whole config, paths and samples of the data.
"""


def make_parser() -> argparse.ArgumentParser:
    """The options of `onn report`."""
    parser = VerbParser(
        "report",
        description="Make one HTML page of a run: config, charts, neurons, samples, timings, data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of `onn fit`")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"where to write the page (default: RUN/{FILE})"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `onn report`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    Raises:
        UsageError: if the folder is no run, or the output no file.
    """
    options = make_parser().parse_args(arguments)
    output: Path = options.output or options.run / FILE

    from onn_lightning.dashboard.files import write_whole
    from onn_lightning.run_report.page import page
    from onn_lightning.run_report.run import NoRunError, read_run

    try:
        run = read_run(options.run)
    except NoRunError as error:
        known = [str(folder) for folder in sorted(RUNS.glob("*")) if folder.is_dir()]
        raise UsageError(f"{error}{nearest(str(options.run), known)}") from error
    if output.is_dir():
        raise UsageError(f"--output {output}: is a folder, a file is needed")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}")
    write_whole(output, page(run, time.time()).encode())
    print(output)
    return 0
