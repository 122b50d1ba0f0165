"""What `core_metrics.png` shows: its panels, each with the figures that belong in it and their unit.

Notable: a figure is found by its key alone, so that one that no callback logs leaves no trace, and a new kind
of SBL, modality or source appears by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """Figures of one panel.

    Args:
        pattern: regular expression that the whole key must match.
        label: what the legend says; `\\1` stands for the pattern's first group.
        bold: whether it stands out, as the whole does among its parts.
    """

    pattern: str
    label: str
    bold: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: above it.
        unit: of the vertical axis.
        lines: in the order of the legend; a key goes to the first that matches.
        log: logarithmic where the values are positive and span a decade or more.
        ordered: colours run from dark to light with the order of the lines: for depth in the tower.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    log: bool = False
    ordered: bool = False

    def assign(self, keys: Iterable[str]) -> dict[str, Line]:
        """The keys that belong in this panel, in the order of its legend, each with its line."""
        keys = sorted(keys, key=_natural)
        assigned: dict[str, Line] = {}
        for line in self.lines:
            for key in keys:
                if re.fullmatch(line.pattern, key):
                    assigned.setdefault(key, line)
        return assigned


def label(key: str, line: Line) -> str:
    """What the legend calls a key."""
    match = re.fullmatch(line.pattern, key)
    assert match is not None
    return match.expand(line.label)


def _natural(key: str) -> list[tuple[int, str]]:
    """Numbers in a key sort as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]


PANELS = (
    Panel(
        "losses",
        "nats, or squared error",
        (Line("train/main_loss", "main", bold=True), Line(r"train/(?!kl_|gate_|main_)(\w+)_loss", r"\1")),
        log=True,
    ),
    Panel(
        "bits per byte",
        "bits",
        (
            Line(r"val/(.+)/bits_per_byte", r"\1, held out"),
            Line("train/bits_per_byte", "training", bold=True),
        ),
    ),
    Panel(
        "held out: right answers",
        "fraction of answers",
        (Line(r"val/(.+)/exact_match", r"\1: whole"), Line(r"val/(.+)/accuracy", r"\1: symbols")),
    ),
    Panel("held out: losses", "nats, or squared error", (Line(r"val/(.+)/(\w+)_loss", r"\1: \2"),), log=True),
    Panel(
        "predictive integrity (PI)",
        "in (0, 1]",
        (
            Line("train/pi_ema", "moving average", bold=True),
            Line("train/pi", "of the step"),
            Line("train/pi/(.+)", r"\1"),
        ),
    ),
    Panel("PI by block", "in (0, 1]", (Line(r"train/pi_block/(\d+)", r"block \1"),), ordered=True),
    Panel("surprise", "gradient norm a neuron", (Line("train/surprise", "surprise"),), log=True),
    Panel(
        "tau and prior_std",
        "nats; width of the prior",
        (Line("train/tau", "tau (entropy), nats", bold=True), Line("train/prior_std", "prior_std")),
    ),
    Panel(
        "activation",
        "fraction of tokens",
        (Line("train/activation_rate", "all neurons", bold=True), Line("train/activation/(.+)", r"\1")),
    ),
    Panel(
        "sigma",
        "unit of the weights",
        (Line("train/sigma", "all", bold=True), Line("train/sigma/(.+)", r"\1")),
    ),
    Panel(
        "gate", "unit of the scores", (Line("train/gate", "all", bold=True), Line("train/gate/(.+)", r"\1"))
    ),
    Panel("KL from the prior", "nats a weight", (Line("train/kl_loss", "KL"),), log=True),
    Panel("gate loss (spread of surprise)", "nats, all SBLs", (Line("train/gate_loss", "gate loss"),)),
    Panel(
        "weights of the losses",
        "factor",
        (Line(r"train/(w_gate|w_kl)", r"\1"), Line("train/loss_weight/(.+)", r"\1")),
        log=True,
    ),
    Panel("plasticity", "factor on the learning rate", (Line("train/plasticity/(.+)", r"\1"),), log=True),
    Panel("learning rate", "a step", (Line("lr-[^/]+/(.+)", r"\1"),), log=True),
    Panel("throughput", "tokens a second", (Line("train/tokens_per_second", "throughput"),)),
)
