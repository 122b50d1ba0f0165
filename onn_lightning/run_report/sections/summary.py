"""The summary: what the run is, how it stands, and the newest figures with a reading of what they mean."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

from onn_lightning.dashboard.curves import Curve
from onn_lightning.run_report.markup import Content, Safe, clipped, element, facts, join, paragraph
from onn_lightning.run_report.quantities import count, duration, figure, moment, share
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section
from onn_lightning.run_report.sections.results import results_tables
from onn_lightning.run_report.state import State

MAX_ARGUMENTS = 100


def section(run: Run, state: State) -> Section:
    """The summary of a run."""
    steps = f"{state.step:,} of {state.max_steps:,}" if state.max_steps else f"{state.step:,}"
    pairs: list[tuple[str, Content]] = [
        ("steps", steps),
        ("tokens", _tokens(run)),
        ("training time", _training_time(run)),
        ("parameters", _parameters(run)),
        ("tower", _tower(run)),
        *_start(run),
    ]
    progress = None
    if state.max_steps:
        done = min(1.0, state.step / state.max_steps)
        progress = element(
            "progress", share(done), value=f"{done:.4f}", max=1, aria_label=f"{share(done)} of the steps"
        )
    newest = list(_readings(run))
    return Section(
        "summary",
        "Summary",
        join(
            paragraph(element("b", state.word, class_=f"badge {state.word}"), " ", state.sentence),
            progress,
            facts(pairs),
            _missing(run),
            element("h3", "Newest figures") if newest else None,
            element("div", newest, class_="readings") if newest else None,
            element("h3", "Held-out results"),
            results_tables(run),
        ),
    )


def _missing(run: Run) -> Safe | None:
    if not run.missing:
        return None
    parts = [element("li", element("code", part.part), " – ", part.reason) for part in run.missing]
    return element(
        "details",
        element("summary", f"{len(run.missing)} part{'s' * (len(run.missing) > 1)} of this run missing"),
        element("ul", parts),
        class_="note",
        open=True,
    )


def _tokens(run: Run) -> str | None:
    if run.record is None or not run.record.totals.tokens:
        return None
    return count(sum(run.record.totals.tokens.values()))


def _training_time(run: Run) -> str | None:
    if run.record is None or not run.record.totals.seconds:
        return None
    return duration(sum(run.record.totals.seconds.values()))


def _parameters(run: Run) -> Content:
    if run.record is not None and run.record.parameters:
        parts = run.record.parameters
        named = ", ".join(f"{name} {amount:,}" for name, amount in parts.items())
        return [count(sum(parts.values())), element("small", named)]
    if run.described is not None:
        return f"{count(run.described.weights)} in the tensors of {run.described.name}, buffers among them"
    return None


def _tower(run: Run) -> str | None:
    trunk = run.described.trunk if run.described is not None else None
    if trunk is None:
        return None
    wide = (
        "" if trunk.get("intermediate_size") in (None, "None") else f", {trunk['intermediate_size']} neurons"
    )
    return (
        f"{trunk.get('num_layers', '?')} blocks of width {trunk.get('hidden_size', '?')}, "
        f"{trunk.get('num_heads', '?')} heads{wide}"
    )


def _start(run: Run) -> Iterator[tuple[str, Content]]:
    """What is known of the newest start."""
    if run.record is None or not run.record.starts:
        return
    first, newest = run.record.starts[0], run.record.starts[-1]
    many = f" x {newest.processes:,} processes" if newest.processes > 1 else ""
    yield "device", f"{newest.device}{many}, precision {newest.precision}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in newest.versions.items())
    resumed = len(run.record.starts) - 1
    yield "started", f"{moment(first.started)}{f', resumed {resumed:,} times' if resumed else ''}"
    if first.command:
        yield "command", element("code", join(*_arguments(first.command), by=" "))


def _arguments(command: Sequence[str]) -> Iterator[Safe]:
    """The words of a command line, of which each stays in one piece."""
    shown = command[:MAX_ARGUMENTS]
    for argument in ("onn", *shown):
        yield element("span", clipped(shlex.quote(argument), 300), class_="argument")
    if len(command) > len(shown):
        yield element("span", f"… ({len(command) - len(shown):,} more)", class_="argument")


# ---- the newest figures --------------------------------------------------------------------------


def _readings(run: Run) -> Iterator[Safe]:
    figures = run.curves.figures
    if (pi := _first_of(figures, "train/pi_ema", "train/pi")) is not None:
        yield _reading(
            "PI", figure(_newest(pi)), f"Predictive integrity, of (0, 1]. {_trend(pi, 'up', 'down')}"
        )
    if (tau := _first_of(figures, "train/tau")) is not None:
        yield _reading("tau", f"{figure(_newest(tau))} nats", _meaning_of_tau(_newest(tau)))
    if (activation := _first_of(figures, "train/activation_rate")) is not None:
        yield _reading("activation", share(_newest(activation)), _meaning_of_activation(_newest(activation)))


def _reading(name: str, value: str, meaning: str) -> Safe:
    return element(
        "div", element("span", name), element("strong", value), element("p", meaning), class_="reading"
    )


def _first_of(figures: dict[str, Curve], *keys: str) -> Curve | None:
    return next((figures[key] for key in keys if key in figures and len(figures[key].steps)), None)


def _newest(curve: Curve) -> float:
    return float(curve.values[-1])


def _trend(curve: Curve, better: str, worse: str) -> str:
    """The newest tenth of a curve against the tenth before."""
    length = max(1, len(curve.values) // 10)
    now, before = curve.values[-length:].mean(), curve.values[-2 * length : -length]
    if not len(before) or not math.isfinite(now) or not math.isfinite(before.mean()):
        return "What comes is predicted as well as the figure says: 1 is perfectly."
    change = float(now - before.mean())
    if abs(change) < 0.01 * abs(float(before.mean())):
        return "Steady of late: the run sees what it has learned to expect."
    if change > 0:
        return f"Going {better} of late: what comes is predicted better and better."
    return (
        f"Going {worse} of late: what comes is predicted worse than before, or predictions grow surer faster "
        "than they grow right."
    )


def _meaning_of_tau(tau: float) -> str:
    if not math.isfinite(tau):
        return "Not finite: the predictions are broken."
    if tau < 0.05:
        return "Next to none: the predictions are certain, as of data that is known by heart."
    return (
        f"Entropy of the predictions: as unsure as between {figure(math.exp(min(tau, 50.0)))} symbols that "
        "are equally likely."
    )


def _meaning_of_activation(activation: float) -> str:
    if not math.isfinite(activation):
        return "Not finite: the network is broken."
    if activation < 0.005:
        return "Nearly no neuron fires: the network is dead, or close to it."
    if activation > 0.6:
        return "Most neurons fire for most tokens: the gates are hardly used yet."
    return f"Of 100 neurons, {activation * 100:.0f} fire for a token on average; the others cost it nothing."
