"""`onn grow`: a trained instance with more neurons, blocks, words or characters, and the same function.

Notable:
- The result is a checkpoint like any other: training goes on from it with the new shape in the config.
- Before it is written, the old and the new network read the same short document. If their outputs differ by
  more than rounding, nothing is written.
- Reading the options needs no torch: `--help` and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onn_lightning.cli.arguments import VerbParser
from onn_lightning.cli.errors import UsageError
from onn_lightning.cli.reshape import Model, add_file_options, check_output, read_model, size_of, way_on

if TYPE_CHECKING:
    import torch

    from onn_lightning.batch import Segment
    from onn_lightning.modality import Modality
    from onn_lightning.nn import TrunkConfig
    from onn_lightning.reshaping import Reshaping
    from onn_lightning.reshaping.comparison import Difference

EXAMPLES = """examples:
  onn grow --checkpoint runs/quickstart --output wider.ckpt --intermediate_size 768
  onn grow --checkpoint runs/quickstart --output wider.ckpt --intermediate_size 2:768 3:1024
  onn grow --checkpoint last.ckpt --output deeper.ckpt --add_blocks 2 --at 3
  onn grow --checkpoint last.ckpt --output words.ckpt --words data/tokenizer/words.txt

Several at once are done in this order: wider, deeper, larger tables. Blocks are counted from 0, as they are
before. The instance does at that moment what it did before; how to go on training is printed at the end.
"""
CHECK_TEXT = "... 0, 1; (2) To be, or not to be: that is the question. 明月几时有?把酒问青天。"
_TABLES = ("vocabulary", "words", "user_words", "max_words")


@dataclass(frozen=True)
class BlockSize:
    """A size of a feed-forward: that of one block, or of all that are smaller (block None)."""

    block: int | None
    size: int


def block_size(text: str) -> BlockSize:
    """Read `SIZE` or `BLOCK:SIZE`.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is neither SIZE nor BLOCK:SIZE, such as 768 or 2:768")
    return BlockSize(None if match[1] is None else int(match[1]), int(match[2]))


def make_parser() -> argparse.ArgumentParser:
    """The options of `onn grow`."""
    parser = VerbParser(
        "grow",
        description="Make a trained instance larger without changing what it does.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_file_options(parser)

    trunk = parser.add_argument_group("wider and deeper")
    trunk.add_argument(
        "--intermediate_size",
        nargs="+",
        type=block_size,
        default=[],
        metavar="SIZE",
        help="neurons of the feed-forwards: SIZE for all that are smaller, BLOCK:SIZE for one",
    )
    trunk.add_argument("--add_blocks", type=int, metavar="N", help="put N new blocks in")
    trunk.add_argument(
        "--at", type=int, metavar="I", help="number that the first new block gets (default: behind the last)"
    )
    trunk.add_argument("--seed", type=int, help="of the random numbers in new parts (default: by the step)")

    tables = parser.add_argument_group("larger tables of the text")
    tables.add_argument(
        "--words", metavar="FILE", help="word list with all words that there are, and new ones"
    )
    tables.add_argument("--user_words", metavar="FILE", help="the same of words added to a word list")
    tables.add_argument("--max_words", type=int, metavar="N", help="keep this many words")
    tables.add_argument("--vocabulary", metavar="FILE", help="tokenizer.json with further characters")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `onn grow`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    given = {name: getattr(options, name) for name in _TABLES if getattr(options, name) is not None}
    if not (options.intermediate_size or options.add_blocks is not None or given):
        raise UsageError("nothing to grow: give --intermediate_size, --add_blocks, --words or --vocabulary")
    if options.at is not None and options.add_blocks is None:
        raise UsageError("--at says where --add_blocks puts new blocks: give both")
    check_output(options.output, options.force)

    import torch

    from onn_lightning.checkpoint import description, writing
    from onn_lightning.reshaping import reshape_checkpoint

    old = read_model(options.checkpoint, tuple(options.trust))
    generator = None if options.seed is None else torch.Generator().manual_seed(options.seed)
    new = old
    for plan in _plans(options, given, old):
        checkpoint = reshape_checkpoint(new.checkpoint, plan, new.modalities, generator)
        modalities = [plan.modalities.get(m.name, m) for m in new.modalities]
        new = Model(options.output, checkpoint, plan.trunk, modalities)
        print(description.history(checkpoint)[-1]["what"])
    before, after = old.module(), new.module()
    difference = _difference(old, new, before, after)
    print(f"before: {size_of(before)}")
    print(f"after:  {size_of(after)}")
    print(
        f"largest difference over {difference.tokens} tokens: {difference.largest:.1e} "
        f"(largest output {difference.scale:.1f})"
    )
    if not difference.is_rounding(_dtype(old.checkpoint["state_dict"])):
        raise description.CheckpointError(
            f"nothing was written to {options.output}: the grown network's outputs differ by "
            f"{difference.largest:.1e}. For some token the neurons before the second layer may be so quiet "
            "that the norm between them no longer sees their scale; grow a later checkpoint"
        )
    writing.write(new.checkpoint, options.output)
    step = new.checkpoint.get("global_step", 0)
    print(
        f"\nwrote {options.output}, at step {step:,}; to go on (max_steps and max_time must reach further):"
    )
    print(f"  {way_on(old, new)}")
    return 0


def _plans(options: argparse.Namespace, tables: Mapping[str, Any], model: Model) -> Iterator[Reshaping]:
    """The plans, each for the trunk that the one before it leaves."""
    from onn_lightning.reshaping import add_blocks, extend_tables, widen

    trunk = model.trunk
    if options.intermediate_size:
        plan = widen(trunk, _sizes(options.intermediate_size, trunk))
        trunk = plan.trunk
        yield plan
    if options.add_blocks is not None:
        plan = add_blocks(trunk, options.add_blocks, trunk.num_layers if options.at is None else options.at)
        trunk = plan.trunk
        yield plan
    if tables:
        yield extend_tables(trunk, _with_tables(model.modalities, tables))


def _sizes(given: Sequence[BlockSize], trunk: TrunkConfig) -> dict[int, int]:
    """New sizes by block; one of a block goes before one of all."""
    named = [entry for entry in given if entry.block is not None]
    if len({entry.block for entry in named}) < len(named) or len(given) - len(named) > 1:
        raise UsageError("--intermediate_size names something twice: one SIZE for all, one for each block")
    sizes: dict[int, int] = {}
    for entry in given:
        if entry.block is None:
            sizes |= {b: entry.size for b, size in enumerate(trunk.feed_forward_sizes) if size < entry.size}
    sizes |= {entry.block: entry.size for entry in named if entry.block is not None}
    if not sizes:
        raise UsageError(
            f"--intermediate_size {given[0].size}: the feed-forwards have {list(trunk.feed_forward_sizes)} "
            "neurons, none has fewer"
        )
    return sizes


def _with_tables(modalities: Sequence[Modality], given: Mapping[str, Any]) -> dict[str, Modality]:
    from datamodules import TextModality

    for modality in modalities:
        if isinstance(modality, TextModality):
            return {modality.name: modality.with_tables(**given)}
    raise UsageError(
        f"--{next(iter(given))}: the checkpoint has no text of characters and words (TextModality), only "
        f"{', '.join(modality.name for modality in modalities)}"
    )


def _difference(old: Model, new: Model, before: Any, after: Any) -> Difference:
    """Both networks over a few tokens of every modality."""
    from datamodules import TextModality
    from onn_lightning.generation.session import one_row_batch
    from onn_lightning.reshaping.comparison import compare, compare_trunks

    shown: list[tuple[Segment, Segment]] = []  # as the old network and as the new one reads them
    symbols = {}
    for one, other in zip(old.modalities, new.modalities, strict=True):
        if isinstance(one, TextModality) and isinstance(other, TextModality) and one is not other:
            shown.append(other.read_alike(one, CHECK_TEXT))
            symbols[one.name] = other.table_origins(one)["character.weight"]
        else:
            segment = one.encode(CHECK_TEXT) if one.name == "text" else one.placeholder()
            if segment is not None and len(segment):
                shown.append((segment, segment))
    if not shown:  # no modality has tokens of its own to show
        return compare_trunks(before.trunk, after.trunk)
    names = [modality.name for modality in old.modalities]
    old_batch, new_batch = (one_row_batch(segments, names) for segments in zip(*shown, strict=True))
    return compare(before, after, old_batch, new_batch, symbols)


def _dtype(state_dict: Mapping[str, Any]) -> torch.dtype:
    """The coarsest floating type of the weights."""
    import torch

    types = {value.dtype for value in state_dict.values() if value.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps)
