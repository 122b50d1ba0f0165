"""The pictures: `core_metrics` out of curves, `neurons` out of a history.

Notable:
- Figures are made without pyplot: no global state, no window, any thread.
- Colours are Okabe and Ito's, which people with any kind of colour vision tell apart, and viridis where an
  order is meant; legends stand beside the axes, where they cover nothing.
- Long noisy curves are shown twice: as they are, pale, and as a moving average.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from onn_lightning.dashboard.curves import Curve, Curves
from onn_lightning.dashboard.files import write_whole
from onn_lightning.dashboard.heatmap import NeuronHistory, Section
from onn_lightning.dashboard.panels import PANELS, Panel, label

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLES = ("-", "--", ":", "-.")
WHOLE = "#000000"
MOST_IN_LEGEND = 12
SMOOTHED_FROM = 150  # points; below, a curve is readable as it is
COLUMNS = 3
DPI = 100
LABEL = 24  # letters of a name in a legend
CHINESE = ("notosanscjk", "notosanssc", "sourcehansans", "wqy", "pingfang", "hiragino", "msyh", "simhei")
"""Beginnings of the names of font files, without spaces and dashes, the best first."""


def use_chinese_fonts() -> None:
    """Let names of sources and runs be written in Chinese too, where the machine has a font for it.

    A setting of the whole process: for one that does nothing but draw. The folders are searched, since
    matplotlib's own list of fonts is as old as its first start on the machine.
    """
    plain = {path: re.sub("[-_ ]", "", Path(path).name.lower()) for path in sorted(findSystemFonts())}
    for beginning in CHINESE:
        paths = [path for path, name in plain.items() if name.startswith(beginning)]
        for path in sorted(paths, key=lambda path: "regular" not in plain[path]):
            with contextlib.suppress(OSError, RuntimeError):  # a damaged file
                fontManager.addfont(path)
                rcParams["font.family"] = ["DejaVu Sans", FontProperties(fname=path).get_name()]
                return


def core_metrics(curves: Curves, title: str = "") -> Figure | None:
    """Every panel that has figures; None where there is nothing to draw.

    Args:
        curves: of a run.
        title: above all panels.
    """
    panels = [(panel, panel.assign(curves.figures)) for panel in PANELS]
    panels = [(panel, keys) for panel, keys in panels if keys]
    if not panels:
        return None
    figure, places = _grid(len(panels), COLUMNS, PANEL, title)
    end = max(curves.last_step, 1)
    for axes, (panel, keys) in zip(places, panels, strict=True):
        _draw_panel(axes, panel, {key: curves.figures[key] for key in keys})
        axes.set_xlim(0, end * 1.02)
    return figure


@dataclass(frozen=True)
class _Cell:
    """Room for one pair of axes, and what of it is left free for labels; inches."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    top: float


PANEL = _Cell(6.4, 3.1, left=0.85, right=1.9, bottom=0.45, top=0.35)
HEATMAP = _Cell(8.0, 6.0, left=0.7, right=0.3, bottom=0.5, top=0.35)
TITLE, SCALE = 0.35, 1.3  # inches above all cells, and right of all heatmaps


def _grid(
    count: int, columns: int, cell: _Cell, title: str, beside: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Axes at fixed places: working out places that fit would cost as much as the drawing."""
    columns = min(columns, count)
    rows = -(-count // columns)
    width, height = columns * cell.width + beside, rows * cell.height + TITLE
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=13, y=1 - 0.12 / height, va="top")
    places = []
    for number in range(count):
        row, column = divmod(number, columns)
        x, y = column * cell.width + cell.left, (rows - 1 - row) * cell.height + cell.bottom
        inner = (cell.width - cell.left - cell.right, cell.height - cell.bottom - cell.top)
        box = (x / width, y / height, inner[0] / width, inner[1] / height)
        places.append(figure.add_axes(box))
    return figure, places


def _draw_panel(axes: Axes, panel: Panel, curves: dict[str, Curve]) -> None:
    lines = panel.assign(curves)
    plain = [key for key in lines if not lines[key].bold]
    for key, line in lines.items():
        place = plain.index(key) if key in plain else 0
        color: Any
        if line.bold:
            color, style, width = WHOLE, "-", 2.8  # seen beneath a part that equals it
        elif panel.ordered:
            color = colormaps["viridis"](0.9 * place / max(1, len(plain) - 1))
            style, width = "-", 1.3
        else:
            color, style, width = COLORS[place % len(COLORS)], STYLES[place // len(COLORS) % len(STYLES)], 1.5
        name = _shortened(label(key, line)) if _in_legend(place, len(plain)) or line.bold else None
        _draw_curve(axes, curves[key], name, color=color, linestyle=style, linewidth=width)
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(alpha=0.25, which="both", linewidth=0.6)
    if panel.log and _spans_a_decade(curves):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if len(curves) > 1 or label(*next(iter(lines.items()))) not in panel.title:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False)


def _shortened(name: str) -> str:
    """So that it fits beside its axes; a Chinese character is as wide as two letters."""
    widths = np.cumsum([2 if east_asian_width(character) in "WF" else 1 for character in name])
    if not len(widths) or widths[-1] <= LABEL:
        return name
    return name[: int(np.searchsorted(widths, LABEL - 1, side="right"))] + "…"


def _in_legend(place: int, count: int) -> bool:
    """Of many lines only some are named, the first and the last among them."""
    return place % max(1, -(-count // MOST_IN_LEGEND)) == 0 or place == count - 1


def _draw_curve(axes: Axes, curve: Curve, name: str | None, **style: Any) -> None:
    values = np.where(np.isfinite(curve.values), curve.values, np.nan)
    marker = "o" if len(values) < 20 else ""
    if len(values) < SMOOTHED_FROM:
        axes.plot(curve.steps, values, label=name, marker=marker, markersize=3.5, **style)
        return
    axes.plot(curve.steps, values, color=style["color"], linewidth=0.6, alpha=0.3)
    axes.plot(curve.steps, _moving_average(values), label=name, **style)


def _moving_average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P] -> [P] centred mean over a fiftieth of the points, gaps left out."""
    window = np.ones(max(3, len(values) // 50) | 1)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), window, mode="same")
    count = np.convolve(known.astype(float), window, mode="same")
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _spans_a_decade(curves: dict[str, Curve]) -> bool:
    values = np.concatenate([curve.values for curve in curves.values()])
    values = values[np.isfinite(values)]
    return bool(values.size) and values.min() > 0 and values.max() >= 10 * values.min()


# ---- neurons -----------------------------------------------------------------------------------------


def neurons(history: NeuronHistory, title: str = "") -> Figure | None:
    """One heatmap a kind of SBL, neurons over time; None for an empty history.

    Args:
        history: of a run.
        title: above all heatmaps.
    """
    if not len(history):
        return None
    kinds = list(history.sections[-1].layout.kinds)
    figure, places = _grid(len(kinds), 2, HEATMAP, title, beside=SCALE)
    for axes, kind in zip(places, kinds, strict=True):
        _draw_kind(axes, history, kind)
    width = figure.get_size_inches()[0]
    scale = figure.add_axes((1 - 1.1 / width, 0.25, 0.22 / width, 0.5))
    figure.colorbar(places[0].images[-1], cax=scale, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    scale.set_ylabel("fraction of the tokens for which a neuron fired", fontsize=9)
    scale.tick_params(labelsize=8)
    return figure


def _draw_kind(axes: Axes, history: NeuronHistory, kind: str) -> None:
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)  # sparse neurons are told apart from silent ones
    tallest, starts = 0, _section_starts(history)
    for section, start, end in zip(history.sections, starts[:-1], starts[1:], strict=True):
        names = section.layout.kinds.get(kind, [])
        if not names:
            continue
        times = [*(column.first_step for column in section.columns), end]
        times[0] = start
        offsets = np.cumsum([0, *(section.layout.sizes[name] for name in names)])
        edges = [section.layout.edges(name) + offset for name, offset in zip(names, offsets, strict=False)]
        rows = np.concatenate([edges[0][:1], *(part[1:] for part in edges)])
        columns = np.array(times, dtype=float)
        axes.pcolorfast(columns, rows, _values(section, names), norm=norm, cmap="viridis")
        axes.hlines(offsets[1:-1], start, end, color="white", linewidth=0.8)
        if start > starts[0]:
            axes.axvline(start, color="#D55E00", linewidth=1.2)
        tallest = max(tallest, offsets[-1])
    _label_kind(axes, history, kind)
    axes.set_xlim(starts[0], starts[-1])
    axes.set_ylim(tallest, 0)


def _section_starts(history: NeuronHistory) -> list[float]:
    """Steps at which the sections begin, and where the last one ends."""
    last = history.sections[-1].columns[-1]
    span = last.last_step - history.sections[0].columns[0].first_step
    end = last.last_step + max(1, span / max(1, len(history) - 1) / last.snapshots)
    return [float(section.columns[0].first_step) for section in history.sections] + [end]


def _values(section: Section, names: list[str]) -> NDArray[np.float32]:
    """[rows of these SBLs, C]"""
    slices = section.layout.row_slices()
    columns = np.stack([column.activation for column in section.columns], axis=1).astype(np.float32)  # [R, C]
    return np.concatenate([columns[slices[name]] for name in names])


def _label_kind(axes: Axes, history: NeuronHistory, kind: str) -> None:
    section = history.sections[-1]
    layout, newest = section.layout, section.columns[-1]
    names = layout.kinds[kind]
    sizes = np.array([layout.sizes[name] for name in names])
    places = [number for number, name in enumerate(layout.sizes) if name in set(names)]
    silent = float((newest.silent[places] * sizes).sum() / sizes.sum())
    axes.set_title(
        f"{kind}: {sizes.sum():,} neurons, {silent:.1%} of them silent at the end", fontsize=11, loc="left"
    )
    middles = np.cumsum(sizes) - sizes / 2
    shown = slice(None, None, -(-len(names) // 16))
    axes.set_yticks(middles[shown], [name.partition(".")[0] for name in names][shown])
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    per_row = max(-(-layout.sizes[name] // layout.bins[name]) for name in names)
    row = "1 neuron" if per_row == 1 else f"up to {per_row} neurons"
    axes.set_ylabel(f"block (a row: {row})", fontsize=9)
    axes.set_xlabel("step", fontsize=9)


# ---- files -------------------------------------------------------------------------------------------


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file that is whole at any moment."""
    write_whole(path, png(figure))
