"""`onn prune`: a trained instance cut back to a budget - the emergency brake, by hand.

Notable:
- Pruning changes what the network computes. So the loss before and after is measured on held-out data, where
  a config says which; of a run folder its own config does.
- The result is a checkpoint like any other; the old one stays. Nothing is written before all is measured.
- Reading the options needs no torch: `--help` and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onn_lightning.cli.arguments import VerbParser, amount, memory
from onn_lightning.cli.errors import UsageError
from onn_lightning.cli.reshape import Model, add_file_options, check_output, read_model, size_of, way_on

if TYPE_CHECKING:
    from datamodules import OmniDataModule

EXAMPLES = """examples:
  onn prune --checkpoint runs/quickstart --output small.ckpt --parameters 1.5M
  onn prune --checkpoint runs/quickstart --output small.ckpt --flops 3M --row_length 512
  onn prune --checkpoint last.ckpt --output small.ckpt --memory 8GB --config quickstart

What goes are the feed-forward neurons that fired for the least share of the tokens of their life, over all
blocks. K, M, G (or B), T are powers of 1000; KiB, MiB, GiB, TiB of 1024.
"""


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got '{text}'")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """The options of `onn prune`."""
    parser = VerbParser(
        "prune",
        description="Remove the neurons that fire least until a budget holds; says what it costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_file_options(parser)

    budget = parser.add_argument_group("budget, one or several; all of them hold afterwards")
    budget.add_argument("--parameters", type=amount, metavar="N", help="at most N trained numbers")
    budget.add_argument(
        "--memory", type=memory, metavar="BYTES", help="at most so much for weights and optimizer state"
    )
    budget.add_argument(
        "--flops", type=amount, metavar="N", help="at most N FLOPs a token in the trunk's forward pass"
    )
    budget.add_argument(
        "--row_length", type=_count, default=512, metavar="T", help="row for which FLOPs count (default: 512)"
    )

    spared = parser.add_argument_group("what is spared")
    spared.add_argument(
        "--min_tokens",
        type=_count,
        default=100_000,
        metavar="N",
        help="neurons that have seen fewer tokens (default: 100000)",
    )
    spared.add_argument(
        "--min_neurons", type=_count, default=32, metavar="N", help="so many of every block (default: 32)"
    )

    loss = parser.add_argument_group("loss before and after")
    loss.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="training config with the validation data (default: that of the run folder); repeatable",
    )
    loss.add_argument(
        "--batches",
        type=_count,
        default=20,
        metavar="N",
        help="of each source; 0: measure nothing (default: 20)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `onn prune`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    limits = {name: getattr(options, name) for name in ("parameters", "memory", "flops")}
    if not any(limits.values()):
        raise UsageError("no budget: give --parameters, --memory or --flops")
    check_output(options.output, options.force)

    from onn_lightning.checkpoint import writing
    from onn_lightning.reshaping import reshape_checkpoint
    from onn_lightning.reshaping.budget import Budget, measure
    from onn_lightning.reshaping.pruning import lifetimes, plan_pruning, removals

    budget = Budget(**limits, row_length=max(1, options.row_length))
    old = read_model(options.checkpoint, tuple(options.trust))
    plan = plan_pruning(
        old.checkpoint, budget, old.trunk, old.modalities, options.min_tokens, options.min_neurons
    )
    pruned = reshape_checkpoint(old.checkpoint, plan, old.modalities)
    new = Model(options.output, pruned, plan.trunk, old.modalities)
    for removal in removals(plan, lifetimes(old.checkpoint, old.trunk)):
        print(removal)
    print(f"budget: {budget.compare(measure(pruned, plan.trunk, new.modalities, budget.row_length))}")
    print(f"before: {size_of(old.module())}")
    print(f"after:  {size_of(new.module())}")
    for line in _losses(options, old, new):
        print(line)
    writing.write(pruned, options.output)
    print(f"\nwrote {options.output}, at step {pruned.get('global_step', 0):,}; to go on training:")
    print(f"  {way_on(old, new)}")
    return 0


def _losses(options: argparse.Namespace, old: Model, new: Model) -> Iterator[str]:
    """Held-out figures of both networks, a line each."""
    own = options.checkpoint / "config.yaml"
    configs = options.config or ([str(own)] if own.is_file() else [])
    if not configs or not options.batches:
        yield "loss: not measured; --config names a training config with validation data"
        return

    from onn_lightning.cli.data_config import build_data

    data = build_data("onn prune", configs, ())
    if not data.splits["validation"]:
        raise UsageError(
            f"--config {configs[0]}: no validation data to measure the loss on; name other data, or give "
            "--batches 0"
        )
    before, after = (_measured(model, data, options.batches) for model in (old, new))
    yield f"held-out figures, {options.batches} batches of each source at most:"
    width = max(map(len, before))
    for name, value in before.items():
        change = f" ({(after[name] - value) / value:+.1%})" if value else ""
        yield f"  {name:<{width}}  {value:8.4f} -> {after[name]:8.4f}{change}"


def _measured(model: Model, data: OmniDataModule, batches: int) -> Mapping[str, float]:
    """Losses and bits per byte by source."""
    from lightning.pytorch import Trainer

    from onn_lightning.checkpoint import description
    from onn_lightning.module import OmniModule

    module = OmniModule(model.trunk, data.modalities)
    description.restore_weights(module, model.checkpoint, model.path)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(devices=1, limit_val_batches=batches, **quiet)
    found = trainer.validate(module, data, verbose=False)
    return {
        name.removeprefix("val/"): value
        for figures in found
        for name, value in figures.items()
        if name.endswith(("_loss", "/bits_per_byte"))
    }
