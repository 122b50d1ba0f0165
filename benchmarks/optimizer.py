"""Cost of an optimizer step while rows rest, over the plain step of torch's own optimizers.

Notable:
- The step measured is what `NeuronProtection` adds up to: masks out of the neurons' activation, handed over,
  and the step itself. The plain one is `torch.optim.AdamW(fused=True)`, alone or beside `torch.optim.Muon`.
- Every comparison runs interleaved in this one process (A B A B ...) and reports the median of the pairwise
  ratios, so that a machine whose speed drifts does not decide.
- On a machine that others use too, `--cpu-time` counts the time that this process ran (for one thread).
- Resting rows stand at random places, or in one run a layer; where and how many is drawn anew in every step.

    python benchmarks/optimizer.py --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from onn_lightning.nn import MoIETrunk, TrunkConfig
from onn_lightning.optim import MuonAdamW, NeuronAdamW, parameter_groups, rows_with_gradient

TARGET = 1.10
LEARNING_RATE = 1e-6
SHARES = (0.0, 0.05, 0.25, 0.5, 0.9)
KINDS = 64
"""Different masks, of which every step takes the next one."""


def make_trunk(width: int, layers: int) -> MoIETrunk:
    """A trunk with gradients."""
    torch.manual_seed(0)
    trunk = MoIETrunk(TrunkConfig(width, layers, max(1, width // 64)))
    give_gradients(trunk)
    return trunk


def give_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)


def plain_adamw(module: nn.Module) -> Callable[[], Any]:
    """torch's own."""
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    return optimizer.step


def plain_muon(module: nn.Module) -> Callable[[], Any]:
    """torch's Muon for the matrices, torch's AdamW for the rest."""
    matrices, *others = parameter_groups(module)
    muon = torch.optim.Muon([matrices], lr=LEARNING_RATE, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


def masked(
    trunk: MoIETrunk, optimizer: NeuronAdamW | MuonAdamW, activations: Iterator[Tensor]
) -> Callable[[], Any]:
    """What a protected run does: masks from the activation, another one in every step, and the step."""
    layers = [list(layer.parameters()) for _, layer in trunk.sbl_layers()]

    def step() -> None:
        masks = (next(activations) > 0).split([len(parameters[0]) for parameters in layers])
        firing: dict[nn.Parameter, Tensor] = {}
        for parameters, mask in zip(layers, masks, strict=True):
            firing |= dict.fromkeys(parameters, mask)
        optimizer.set_firing(firing)
        optimizer.step()

    return step


def activations_of(trunk: MoIETrunk, share: float, clustered: bool) -> Iterator[Tensor]:
    """[N] activations for the steps to come, of each of which about a share is 0."""
    return itertools.cycle([activation_of(trunk, share, clustered) for _ in range(KINDS)])


def activation_of(trunk: MoIETrunk, share: float, clustered: bool) -> Tensor:
    """[N] activation of which about a share is 0: at random places, or in the middle of every layer."""
    parts = []
    for _, layer in trunk.sbl_layers():
        neurons = layer.out_features
        activation = (torch.rand(neurons) >= share).float()
        if clustered:
            resting = int((activation == 0).sum())
            activation[:] = 1
            activation[(neurons - resting) // 2 : (neurons + resting) // 2] = 0
        parts.append(activation)
    return torch.cat(parts)


class Clock:
    """Times steps against each other.

    Args:
        now: seconds.
        repeats: steps of each.
    """

    def __init__(self, now: Callable[[], float], repeats: int) -> None:
        self.now, self.repeats = now, repeats

    def ratio(self, measured: Callable[[], Any], plain: Callable[[], Any]) -> tuple[float, float]:
        """(median of the pairwise ratios, median milliseconds of the plain step)."""
        seconds: dict[str, list[float]] = {"measured": [], "plain": []}
        steps = {"measured": measured, "plain": plain}
        for _ in range(2):  # compile, make the states
            for step in steps.values():
                step()
        for number in range(self.repeats):
            names = list(steps) if number % 2 else list(steps)[::-1]
            for name in names:
                start = self.now()
                steps[name]()
                seconds[name].append(self.now() - start)
        pairs = zip(seconds["measured"], seconds["plain"], strict=True)
        return statistics.median(a / b for a, b in pairs), 1e3 * statistics.median(seconds["plain"])


def trunk_ratios(clock: Clock, width: int, layers: int) -> dict[str, Any]:
    """Ratios of both optimizers on a trunk."""
    ours, theirs = make_trunk(width, layers), make_trunk(width, layers)
    result: dict[str, Any] = {}
    makers: dict[str, tuple[Callable[..., Any], Callable[[nn.Module], Callable[[], Any]]]] = {
        "adamw": (NeuronAdamW, plain_adamw),
        "muon": (MuonAdamW, plain_muon),
    }
    for name, (make, make_plain) in makers.items():
        optimizer, plain = make(parameter_groups(ours), lr=LEARNING_RATE), make_plain(theirs)
        rows: dict[str, float] = {}
        rows["no masks"], milliseconds = clock.ratio(optimizer.step, plain)
        for share in SHARES:
            for clustered in (False, True) if share else (False,):
                step = masked(ours, optimizer, activations_of(ours, share, clustered))
                place = " clustered" if clustered else " random" if share else ""
                rows[f"{100 * share:.0f} % rest{place}"], _ = clock.ratio(step, plain)
        result[name] = {"plain_milliseconds": milliseconds, "ratio": rows}
    return result


def table_ratios(clock: Clock, rows: int, width: int, read: float) -> dict[str, Any]:
    """Ratio on an embedding table of which a share of the rows is read in a step."""
    tables = [nn.Embedding(rows, width) for _ in range(2)]
    gradient = torch.zeros(rows, width)
    chosen = torch.randperm(rows)[: round(read * rows)]
    gradient[chosen] = torch.randn(len(chosen), width)
    for table in tables:
        table.weight.grad = gradient.clone()
    optimizer = NeuronAdamW(parameter_groups(tables[0]), lr=LEARNING_RATE)

    def step() -> None:
        weight = tables[0].weight
        assert weight.grad is not None
        optimizer.set_firing({weight: rows_with_gradient(weight.grad)})
        optimizer.step()

    measured, milliseconds = clock.ratio(step, plain_adamw(tables[1]))
    return {"plain_milliseconds": milliseconds, "ratio": {f"{100 * read:.0f} % read": measured}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = Clock(time.process_time if arguments.cpu_time else time.perf_counter, arguments.repeats)

    measured: dict[str, Any] = {}
    for width in (192, 512):
        for name, part in trunk_ratios(clock, width, 4).items():
            measured[f"{name}, trunk 4 x {width}"] = part
    for read in (0.01, 0.1, 1.0):
        measured[f"adamw, table 50000 x 64, {100 * read:.0f} % read"] = table_ratios(clock, 50_000, 64, read)
    missed = [
        f"{name}: {case} {value:.2f}"
        for name, part in measured.items()
        for case, value in part["ratio"].items()
        if value > TARGET
    ]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if arguments.json:
        print(json.dumps({"machine": machine, "target": TARGET, "missed": missed, **measured}, indent=1))
        return
    print(machine)
    for name, part in measured.items():
        print(f"{name}: plain {part['plain_milliseconds']:.2f} ms")
        for case, value in part["ratio"].items():
            print(f"  {case:24} {value:.2f}{'   missed' if value > TARGET else ''}")


if __name__ == "__main__":
    main()
