"""`onn export`: a training checkpoint as safetensors and plain files, without optimizer or pickle.

Notable:
- Checkpoints in one file and sharded ones alike; memory of one tensor at a time.
- No class that the checkpoint names is imported: nothing of it needs to be trusted.
- Reading the options needs no torch: `--help` and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from onn_lightning.cli.arguments import VerbParser, memory
from onn_lightning.cli.errors import UsageError
from onn_lightning.cli.generate import find_checkpoint

EXAMPLES = """examples:
  onn export runs/quickstart --to exported
  onn export runs/large/checkpoints/step=1000.ckpt --to exported --dtype bfloat16 --max_file_size 2GB
  onn generate --checkpoint exported --prompt "Once"

The folder holds model.safetensors (or several, with model.safetensors.index.json), config.json, and the
files of the modalities. `OmniModule.load_from_checkpoint(folder)` makes the model again: the same logits.
"""


def make_parser() -> VerbParser:
    """The options."""
    parser = VerbParser(
        "export",
        description="Write the weights of a trained model as safetensors, for exchange.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint, of one file or sharded, or run folder")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="folder to make")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="type of the matrices; vectors keep theirs (default: as they were trained)",
    )
    parser.add_argument(
        "--max_file_size",
        type=memory,
        default=memory("5GB"),
        metavar="SIZE",
        help="more weights than this go into several files (default: 5GB)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `onn export`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    if options.to.exists():
        raise UsageError(f"--to {options.to} is there already: give another name")
    path = find_checkpoint(options.checkpoint)

    import torch

    from onn_lightning.checkpoint.exported import export

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    made = export(path, options.to, options.max_file_size, dtype)
    files = "1 file" if made.files == 1 else f"{made.files} files"
    size = f"{made.num_bytes / 1e6:,.1f} MB"
    sys.stdout.write(f"{path} -> {options.to}: {made.tensors} tensors, {size} of weights in {files}\n")
    return 0
