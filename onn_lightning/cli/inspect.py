"""`onn inspect`: what the batches of a training config really hold.

Notable:
- Builds the DataModule of any training config, not its model, and takes batches from its real loader, as
  rank 0 of one. Everything shown is read back from these batches.
- Text goes to the terminal with the boundaries of its words; images and spectrograms go to one PNG a
  batch, as the features hold them. `--json` prints the same for machines.
- Own options are read before anything heavy is imported; what begins with `--data.` overrides the config
  as it does for `onn fit`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onn_lightning.cli.arguments import VerbParser, positive
from onn_lightning.cli.generate import show

if TYPE_CHECKING:
    from onn_lightning.inspection import Inspector

EXAMPLES = """examples:
  onn inspect --config quickstart
  onn inspect --config quickstart --split validation --batches 1 --to look
  onn inspect --config runs/quickstart/config.yaml --data.init_args.row_length 128 --json

Any field of the DataModule can be overridden by --data.<field>, as for `onn fit`.
"""
SPLITS = ("train", "validation", "test", "predict")


def make_parser() -> VerbParser:
    """The options of `onn inspect` but those of the DataModule."""
    parser = VerbParser(
        "inspect",
        description="Show what the batches of a training config hold.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="training config: a path or the name of a bundled one; repeatable, later ones override",
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="which data (default: train)")
    parser.add_argument(
        "--batches",
        type=positive,
        default=2,
        metavar="N",
        help="how many, of held-out data of each source (default: 2)",
    )
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="folder for the PNGs (default: runs/<config>/inspect)"
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        default=400,
        metavar="N",
        help="show N tokens of each stretch of text (default: 400)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all tokens")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `onn inspect`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    options, overrides = make_parser().parse_with_overrides(arguments, ["data"])

    from onn_lightning.cli.data_config import build_data
    from onn_lightning.inspection import Inspector

    data = build_data("onn inspect", options.config, overrides)
    folder = options.to or Path("runs") / Path(options.config[0]).stem / "inspect"
    inspector = Inspector(data, options.split, options.batches, folder)
    show(_as_json(inspector) if options.json else _as_text(inspector, options.tokens))
    return 0


def _as_text(inspector: Inspector, limit: int) -> Iterator[str]:
    from onn_lightning.inspection.page import LEGEND, counts_lines, piece_lines, totals_lines

    width = shutil.get_terminal_size((100, 24)).columns
    lines = [LEGEND]
    for batch in inspector.batches():
        lines += ["", f"== {batch.name}, batch {batch.number}", *counts_lines(batch.counts)]
        lines += [line for piece in batch.pieces for line in piece_lines(piece, limit, width)]
        lines += [f"pictures: {batch.sheet}", ""]
        yield "\n".join(lines)
        lines = []
    yield "\n".join(["", "== all batches", *totals_lines(inspector.totals())])


def _as_json(inspector: Inspector) -> Iterator[str]:
    from onn_lightning.inspection.plain import plain_batch, plain_totals

    batches = [plain_batch(batch) for batch in inspector.batches()]
    found = {"split": inspector.split, "batches": batches, "totals": plain_totals(inspector.totals())}
    yield json.dumps(found, indent=1)
