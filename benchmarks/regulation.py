"""What self-regulation is worth, on Chinese and English text: same data, same budget, several seeds.

- gate: the gate loss off, at fixed weights, and under policies: activation against bits per byte;
- continual: a life of two domains, English then Chinese and poems then plays: what the second one costs of
  the first (bits per byte after minus before), with and without plasticity control and neuron protection;
- growth: a small network that grows on a plateau against one of the final size from the start.

Every run is a `Trainer.fit` of the product's module, optimizer and callbacks (`regulation_runs.py`). Figures
are mean (least - most) over the seeds. Runs are spread over `--jobs` processes of one thread each; nothing
here is a timing.

    python benchmarks/regulation.py --json
    python benchmarks/regulation.py --part continual --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

# one thread a run, before torch is imported; the other parts are imported from the repository's root
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch import Callback

from benchmarks.regulation_runs import Held, Setting, Texts, build, live, read_texts, trunk_of
from onn_lightning.callbacks import GrowOnPlateau, LossReweighting, NeuronProtection, Plasticity
from onn_lightning.flops import trunk_forward_flops
from onn_lightning.nn import TrunkConfig
from onn_lightning.regulation import (
    ActivationTarget,
    ConsolidatingWeight,
    FixedWeight,
    IntegrityPlasticity,
    IntegrityWeight,
    LossSigmoidWeight,
    NegativeLogTauWeight,
    Plateau,
    WeightPolicy,
)
from onn_lightning.reshaping.rebuild import fit_growing

JOINT = Setting()
TWO_DOMAINS = Setting(width=64, layers=2, length=128, steps=250, lr=3e-3, min_lr_ratio=1.0)
"""A life that does not know its end has a constant rate."""
PAIRS = {"en-zh": ("en", "zh"), "poems-en": ("poems", "en")}

GATE: dict[str, Callable[[], WeightPolicy]] = {
    "off": lambda: FixedWeight(0.0),
    **{
        f"fixed {value:g}": (lambda value=value: FixedWeight(value))
        for value in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    },
    "1 - sigmoid(L), published": lambda: LossSigmoidWeight(),
    "-log tau, published": lambda: NegativeLogTauWeight(),
    "IntegrityWeight(0, 0.01)": lambda: IntegrityWeight(0.0, 0.01),
    "ActivationTarget": lambda: ActivationTarget(start=1e-5),
    "ConsolidatingWeight": lambda: ConsolidatingWeight(),
}
SHORTER = "ConsolidatingWeight, 20 % fewer steps"


CONTINUAL: dict[str, Callable[[], list[Callback]]] = {
    "constant rate": lambda: [],
    "IntegrityPlasticity": lambda: [Plasticity(IntegrityPlasticity())],
    "NoveltyResponse": lambda: [Plasticity()],
    "protection": lambda: [NeuronProtection(tables=False)],
    "protection, tables too": lambda: [NeuronProtection(tables=True)],
    "protection 1.0": lambda: [NeuronProtection(tables=False, min_activation=1.0)],
    "NoveltyResponse + protection": lambda: [Plasticity(), NeuronProtection(tables=False)],
    "NoveltyResponse + protection 1.0": lambda: [
        Plasticity(),
        NeuronProtection(tables=False, min_activation=1.0),
    ],
}
SMALL, LARGE = 64, 256
GROWTH = ("large from the start", "small, grown on a plateau", "small", "large, four fifths of the steps")


@dataclass(frozen=True)
class Run:
    """One run: a part, what is compared in it, and a seed."""

    part: str
    name: str
    seed: int
    data: Path
    pair: str = ""


@cache
def _texts(data: Path, names: tuple[str, ...]) -> Texts:
    return read_texts(data, names)


def gate(run: Run) -> dict[str, float]:
    """Chinese and English together; KL at its default weight."""
    texts = _texts(run.data, ("zh", "en"))
    setting = replace(JOINT, steps=round(JOINT.steps * 0.8)) if run.name == SHORTER else JOINT
    policy = GATE["ConsolidatingWeight" if run.name == SHORTER else run.name]()
    held = Held({name: domain.held_out for name, domain in texts.domains.items()}, setting)
    module = build(texts, setting, run.seed, w_gate=policy.bounds[0])
    streams = [domain.train for domain in texts.domains.values()]
    live(module, [streams], setting, run.seed, [LossReweighting(w_gate=policy), held])
    return held.stages[0]


def continual(run: Run) -> dict[str, float]:
    """The first domain, then the second."""
    first, second = PAIRS[run.pair]
    texts = _texts(run.data, (first, second))
    held = Held({name: texts.domains[name].held_out for name in (first, second)}, TWO_DOMAINS)
    streams = [[texts.domains[name].train] for name in (first, second)]
    live(build(texts, TWO_DOMAINS, run.seed), streams, TWO_DOMAINS, run.seed, [*CONTINUAL[run.name](), held])
    before, after = held.stages
    return {
        "first, before": before[first],
        "first, after": after[first],
        "forgotten": after[first] - before[first],
        "second": after[second],
    }


def growth(run: Run) -> dict[str, float]:
    """Feed-forwards of 64 neurons that become 256, and of 256 from the start; both languages together."""
    texts = _texts(run.data, ("zh", "en"))
    setting = replace(JOINT, steps=round(JOINT.steps * 0.8)) if run.name == GROWTH[3] else JOINT
    held = Held({name: domain.held_out for name, domain in texts.domains.items()}, setting)
    streams = [[domain.train for domain in texts.domains.values()]]
    begun = trunk_of(setting, LARGE if run.name.startswith("large") else SMALL)
    grown_at: list[int] = []

    def fit(trunk: TrunkConfig | None, checkpoint: Path | None) -> None:
        rule = Plateau(patience=50, min_improvement=0.03, min_activation=0.2, cooldown=100, half_life=20)
        grow = GrowOnPlateau(rule, widen_by=LARGE / SMALL, max_growths=1, check_every_n_steps=10)
        callbacks = [*([grow] if run.name == GROWTH[1] else []), held]
        if checkpoint is not None:
            grown_at.append(int(checkpoint.stem.split("=")[1].split("-")[0]))
        module = build(texts, setting, run.seed, trunk or begun)
        live(module, streams, setting, run.seed, callbacks, Path(folder), checkpoint)

    with tempfile.TemporaryDirectory() as folder:
        fit_growing(fit)
    small, large = (trunk_forward_flops(trunk_of(JOINT, size), JOINT.length) for size in (SMALL, LARGE))
    # steps with the large network, and with the small one
    at_small = 0 if begun.feed_forward_sizes[0] == LARGE else (grown_at or [setting.steps])[0]
    spent = (setting.steps - at_small + at_small * small / large) / JOINT.steps
    return held.stages[0] | {"grown at": float(grown_at[0]) if grown_at else 0.0, "trunk FLOPs spent": spent}


PARTS: dict[str, Callable[[Run], dict[str, float]]] = {
    part.__name__: part for part in (gate, continual, growth)
}


def plan(parts: Iterable[str], seeds: Iterable[int], data: Path) -> list[Run]:
    """All runs, seed by seed, so that an interrupted benchmark has whole seeds."""
    runs = []
    for seed in seeds:
        for part in parts:
            if part == "gate":
                runs += [Run(part, name, seed, data) for name in (*GATE, SHORTER)]
            elif part == "continual":
                runs += [Run(part, name, seed, data, pair) for pair in PAIRS for name in CONTINUAL]
            else:
                runs += [Run(part, name, seed, data) for name in GROWTH]
    return runs


def table(results: dict[Run, dict[str, float]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Part (and pair) -> what is compared -> figure -> its value for every seed."""
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for run in sorted(results, key=lambda run: run.seed):
        row = rows.setdefault(f"{run.part} {run.pair}".strip(), {}).setdefault(run.name, {})
        for figure, value in results[run].items():
            row.setdefault(figure, []).append(value)
    return rows


def main() -> None:
    """Run all, print mean and spread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="repeatable; default: all")
    parser.add_argument("--only", action="append", help="what is compared: these names alone; repeatable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data", type=Path, default=Path("data/quickstart"))
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with the value of every seed"
    )
    arguments = parser.parse_args()
    runs = [
        run
        for run in plan(arguments.part or PARTS, arguments.seeds, arguments.data.resolve())
        if not arguments.only or run.name in arguments.only
    ]
    results: dict[Run, dict[str, float]] = {}
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(PARTS[run.part], run): run for run in runs}
        for number, future in enumerate(as_completed(futures), start=1):
            run = futures[future]
            results[run] = future.result()
            figures = {name: round(value, 4) for name, value in results[run].items()}
            line = f"{number}/{len(runs)} {run.part} {run.pair} seed {run.seed} {run.name}: {figures}"
            print(line, file=sys.stderr, flush=True)
    rows = table(results)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for part, compared in rows.items():
        print(f"\n{part}")
        for name, figures in compared.items():
            print(f"  {name}")
            for figure, values in figures.items():
                print(f"    {figure:20} {_spread(values)}")


def _spread(values: list[Any]) -> str:
    return f"{statistics.mean(values):8.4f}  ({min(values):.4f} - {max(values):.4f})"


if __name__ == "__main__":
    main()
