"""`onn generate`: text that follows any interleaving of text, images and sound, streamed to stdout.

Notable:
- `--prompt`, `--image` and `--audio` may be repeated and are read in the order in which they stand on
  the command line.
- Every other option is handed to `onn_lightning.generation.generate` only if it was given: defaults
  and checks are the library's.
- Reading the options needs no torch: `--help` and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onn_lightning.cli.arguments import VerbParser
from onn_lightning.cli.errors import UsageError

EXAMPLES = """examples:
  onn generate --checkpoint runs/quickstart --prompt "To be, or"
  onn generate --checkpoint runs/quickstart --image seven.png
  onn generate --checkpoint last.ckpt --image a.png --prompt " and then " --image b.png --temperature 0.8

The text goes on from the last item; after an image, a sound or an empty prompt it begins anew.
"""


class AppendItem(argparse.Action):
    """Appends (modality, value) to the document that all inputs share, in order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.document = [*namespace.document, (self.const, values)]


def make_parser() -> argparse.ArgumentParser:
    """The options of `onn generate`; those not given are absent from the result."""
    parser = VerbParser(
        "generate",
        description="Continue text, images and sound with text.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(document=[], trust=[])
    parser.add_argument("--checkpoint", required=True, type=Path, help="checkpoint file or run folder")

    inputs = parser.add_argument_group("inputs, in the order given, each any number of times")
    inputs.add_argument("--prompt", dest="document", action=AppendItem, const="text", metavar="TEXT")
    inputs.add_argument("--image", dest="document", action=AppendItem, const="image", metavar="FILE")
    inputs.add_argument("--audio", dest="document", action=AppendItem, const="audio", metavar="FILE")

    choice = parser.add_argument_group("choice of the next token")
    choice.add_argument("--temperature", type=float, help="0: greedy (default); above: sample")
    choice.add_argument("--top_k", type=int, metavar="K", help="sample among the K most probable")
    choice.add_argument("--top_p", type=float, metavar="P", help="sample among the top ones that add up to P")
    choice.add_argument("--seed", type=int, help="makes sampling repeatable")

    end = parser.add_argument_group("end")
    end.add_argument("--max_new_tokens", type=int, metavar="N", help="at most N tokens (default: 256)")
    end.add_argument("--stop", action="extend", nargs="+", metavar="TEXT", help="end before these texts")

    parser.add_argument(
        "--trust",
        action="extend",
        nargs="+",
        metavar="PACKAGE",
        help="packages from which the checkpoint may name modality classes (importing them runs their code)",
    )
    return parser


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `--checkpoint` means.

    Args:
        path: a checkpoint of any form, a folder of `onn export`, or a run folder.
    Raises:
        UsageError: if the folder holds no complete checkpoint.
    """
    from onn_lightning.checkpoint.complete import (
        CHECKPOINTS,
        is_complete,
        is_exported,
        newest_intact_checkpoint,
    )

    if not path.is_dir() or is_complete(path) or is_exported(path):
        return path
    newest = newest_intact_checkpoint(path)
    if newest is None:
        raise UsageError(
            f"--checkpoint {path}: no complete checkpoint in {path / CHECKPOINTS}; give a run folder of "
            "`onn fit` or a checkpoint file"
        )
    return newest


def main(arguments: Sequence[str]) -> int:
    """Run `onn generate`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    options = vars(make_parser().parse_args(arguments))
    checkpoint, trusted = options.pop("checkpoint"), tuple(options.pop("trust"))
    document = options.pop("document")

    import torch

    from onn_lightning.generation import generate
    from onn_lightning.module import OmniModule

    module = OmniModule.load_from_checkpoint(find_checkpoint(checkpoint), trusted_packages=trusted)
    if torch.cuda.is_available():
        module.cuda()
    show(generate(module, document, **options))
    return 0


def show(pieces: Iterable[str]) -> None:
    """Write a stream to stdout as it comes, and end the line, also when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows "?"
    try:
        try:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            sys.stdout.write("\n")
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough (`| head`)
        # Python flushes stdout once more at exit; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
