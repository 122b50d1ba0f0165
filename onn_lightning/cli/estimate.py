"""`onn estimate`: what a config needs, before anything is trained or read.

Notable:
- Only shapes are computed; data need not be there.
- Every strategy and every mode of gradient checkpointing is shown, whichever the config has: the table is to
  choose from.
- Reading the options needs no torch: `--help` and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from onn_lightning.cli.arguments import VerbParser, above_zero, positive
from onn_lightning.cli.errors import UsageError
from onn_lightning.estimate.peaks import PEAKS

if TYPE_CHECKING:
    from onn_lightning.estimate.run import Estimate

EXAMPLES = """examples:
  onn estimate --config omni_3b --gpus 8 --gpu-memory 80 --gpu h100
  onn estimate --config quickstart --peak-tflops 0.2 --json
  onn estimate --config omni_3b --data.init_args.row_length 8192

Further options change the config, as those of `onn fit` do. GB are 10^9 bytes.
"""


def make_parser() -> VerbParser:
    """The options of `onn estimate`."""
    parser = VerbParser(
        "estimate",
        description="Parameters, operations, memory of a GPU and tokens a day of a training config.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="training config; repeatable"
    )
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="of the whole run (default: 1)")
    parser.add_argument(
        "--tensor-parallel",
        type=positive,
        default=1,
        metavar="N",
        help="GPUs that share a layer (1)",
    )
    parser.add_argument("--gpu-memory", type=above_zero, metavar="GB", help="of one GPU: says what fits")
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(PEAKS)}: its bfloat16 peak")
    parser.add_argument("--peak-tflops", type=above_zero, metavar="N", help="peak of any other device")
    parser.add_argument(
        "--mfu", type=above_zero, default=0.4, help="share of the peak reached (default: 0.4)"
    )
    parser.add_argument("--json", action="store_true", help="the same numbers as JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `onn estimate`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    options, overrides = make_parser().parse_with_overrides(arguments, ["data", "model", "trainer"])
    if options.mfu > 1:
        raise UsageError(f"--mfu {options.mfu}: it is a share, at most 1")

    if options.gpu is not None and options.gpu.lower() not in PEAKS:
        raise UsageError(f"--gpu {options.gpu}: known are {', '.join(PEAKS)}; else give --peak-tflops")

    if options.gpus % options.tensor_parallel:
        raise UsageError(
            f"--tensor-parallel {options.tensor_parallel} does not divide --gpus {options.gpus}: give "
            "all GPUs of the run, nodes x GPUs of a node"
        )

    from onn_lightning.cli.data_config import build_outline
    from onn_lightning.estimate.activations import PRECISIONS
    from onn_lightning.estimate.run import estimate

    peak = None if options.gpu is None else PEAKS[options.gpu.lower()]
    peak = peak if options.peak_tflops is None else options.peak_tflops * 1e12
    outline = build_outline("onn estimate", options.config, overrides)
    precision = str(outline.trainer.get("precision") or "32-true")
    if precision not in PRECISIONS:
        raise UsageError(f"trainer.precision {precision}: estimated are {', '.join(PRECISIONS)}")
    data = outline.data
    found = estimate(
        outline.model,
        data.rows_per_batch,
        data.row_length,
        PRECISIONS[precision],
        options.gpus,
        peak,
        options.mfu,
        options.tensor_parallel,
    )
    header = f"{data.rows_per_batch} x {data.row_length:,} tokens a GPU and pass, {precision}"
    if options.json:
        print(json.dumps(_as_json(found, options.gpu_memory), indent=1))
    else:
        print("\n".join(_as_text(found, header, options)))
    return 0


def _as_json(found: Estimate, memory: float | None) -> dict[str, Any]:
    totals: dict[str, dict[str, Any]] = {}
    for strategy, states in found.states.items():
        peaks = {mode: found.peak(strategy, mode) for mode in found.steps[strategy]}
        totals[strategy] = {**asdict(states), "peak": peaks}
        if memory is not None:
            totals[strategy]["fits"] = {mode: peak <= memory * 1e9 for mode, peak in peaks.items()}
    return {**asdict(found), "states": totals}


def _as_text(found: Estimate, header: str, options: argparse.Namespace) -> list[str]:
    total = sum(found.parameters.values())
    lines = [f"parameters{total:>28,}"]
    lines += [f"  {name:<20}{n:>16,}{n / total:>8.1%}" for name, n in found.parameters.items()]
    lines += [
        "",
        "FLOPs a token",
        f"  forward {found.forward:.3g} (attention {found.attention:.3g}), backward {found.backward:.3g}",
    ]
    if found.tokens_per_day is not None:
        gpus = f"{options.gpus} GPU{'s' if options.gpus > 1 else ''}"
        lines.append(f"  {found.tokens_per_day:.3g} tokens a day on {gpus} at an MFU of {options.mfu:.0%}")
    modes = list(found.steps["single"])
    lines += [
        "",
        f"memory of a GPU in GB, {header}",
        f"{'':<10}{'weights':>10}{'gradients':>11}{'optimizer':>11}  all, by gradient checkpointing:",
        f"{'':<42}{''.join(f'{mode:>11}' for mode in modes)}",
    ]
    for strategy, states in found.states.items():
        numbers = (states.weights, states.gradients, states.optimizer)
        cells = "".join(f"{_gigabytes(n):>{w}}" for n, w in zip(numbers, (10, 11, 11), strict=True))
        peaks = "".join(f"{_gigabytes(found.peak(strategy, mode)):>11}" for mode in modes)
        lines.append(f"  {strategy:<8}{cells}{peaks}")
    if options.gpu_memory is not None:
        lines.append(_what_fits(found, options.gpu_memory))
    step = found.steps["single"]["none"]
    others = step.trunk - step.mask - step.weight_copies
    lines.append(
        f"  of a step without checkpointing: mask of packed rows {_gigabytes(step.mask)}, SBLs' copies of "
        f"weights {_gigabytes(step.weight_copies)}, other activations {_gigabytes(others)}"
    )
    return lines


def _what_fits(found: Estimate, memory: float) -> str:
    fitting = {
        strategy: [mode for mode in modes if found.peak(strategy, mode) <= memory * 1e9]
        for strategy, modes in found.steps.items()
    }
    named = "; ".join(f"{strategy} ({', '.join(modes)})" for strategy, modes in fitting.items() if modes)
    return f"  {memory:g} GB hold: {named or 'none of these'}"


def _gigabytes(number: float) -> str:
    """Three digits at least."""
    value = number / 1e9
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 4)}f}"
