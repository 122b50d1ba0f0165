"""Neurons over time: which of them fire, one heatmap a kind of SBL.

Notable:
- A pixel is a neuron (or some neighbours, where there are more than pixels) at a step; the picture is a
  small PNG in the page, its axes are SVG around it.
- The scale is that of a square root, so that sparse neurons are told apart from silent ones.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onn_lightning.dashboard.heatmap import NeuronHistory
from onn_lightning.dashboard.heatmap import Section as Stretch
from onn_lightning.run_report.axis import tick_label
from onn_lightning.run_report.markup import Safe, element, join, paragraph
from onn_lightning.run_report.quantities import share
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 440, 300, 52, 6, 28
COLUMNS, ROWS = 256, 256  # pixels of a picture
LEVELS = 64
MAX_KINDS, MAX_NAMES = 16, 16
SCALE = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
# stops of viridis, which people with any kind of colour vision see rise (van der Walt and Smith 2015)
VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")


def section(run: Run) -> Section:
    """The heatmaps of a run."""
    if run.neurons is None:
        about = "No history of the neurons is there: the callback Dashboard writes it (neurons.npz)."
        return Section("neurons", "Neurons", paragraph(about, class_="faint"))
    kinds = list(run.neurons.sections[-1].layout.kinds)
    said = (
        "Fraction of the tokens for which a neuron fires; neurons from top to bottom, steps from left to "
        "right; white lines part the blocks."
    )
    left_out = f" {len(kinds) - MAX_KINDS} more kinds are left out." if len(kinds) > MAX_KINDS else ""
    maps = [_heatmap(run.neurons, kind, place) for place, kind in enumerate(kinds[:MAX_KINDS])]
    return Section(
        "neurons",
        "Neurons",
        join(
            paragraph(said + left_out, class_="faint"),
            _legend(),
            element("div", maps, class_="charts heatmaps"),
        ),
    )


def _heatmap(history: NeuronHistory, kind: str, place: int) -> Safe:
    first, last = _steps(history)
    pixels = picture(history, kind)
    newest = history.sections[-1]
    names = newest.layout.kinds[kind]
    sizes = [newest.layout.sizes[name] for name in names]
    words = _in_words(newest, kind)
    top, height = TOP, HEIGHT - TOP - BOTTOM
    tallest = _tallest(history, kind)
    parts = [
        element("title", words, id=f"neurons-{place}"),
        element(
            "image",
            x=LEFT,
            y=top,
            width=WIDTH - LEFT,
            height=height,
            href=f"data:image/png;base64,{_png(pixels)}",
            preserveAspectRatio="none",
            class_="pixels",
        ),
    ]
    ends = np.cumsum(sizes)
    every = -(-len(names) // MAX_NAMES)
    for number, (name, size, end) in enumerate(zip(names, sizes, ends, strict=True)):
        y = top + float(end) / tallest * height
        if number + 1 < len(names):
            parts.append(element("line", x1=LEFT, x2=WIDTH, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="border"))
        if number % every == 0:
            middle = y - size / 2 / tallest * height + 4
            label = _block_of(name)
            parts.append(
                element("text", label, x=LEFT - 6, y=f"{middle:.1f}", text_anchor="end", class_="tick")
            )
    for fraction, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + fraction * (WIDTH - LEFT)
        step = tick_label(round(first + fraction * (last - first)))
        parts.append(
            element("text", step, x=f"{x:.1f}", y=HEIGHT - BOTTOM + 15, text_anchor=anchor, class_="tick")
        )
    parts.append(
        element("text", "step", x=LEFT - 6, y=HEIGHT - BOTTOM + 15, text_anchor="end", class_="tick")
    )
    return element(
        "figure",
        element(
            "figcaption", element("span", kind, class_="title"), " ", element("span", words, class_="unit")
        ),
        element(
            "svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_labelledby=f"neurons-{place}"
        ),
        class_="chart",
    )


def picture(history: NeuronHistory, kind: str) -> NDArray[np.float32]:
    """[rows, columns] activation of the neurons of a kind over the steps; NaN where there were none.

    Args:
        history: at least one column.
        kind: of the SBLs.
    """
    first, last = _steps(history)
    tallest = _tallest(history, kind)
    rows, columns = min(ROWS, tallest), min(COLUMNS, max(1, last - first))
    steps = first + (np.arange(columns) + 0.5) / columns * (last - first)
    pixels = np.full((rows, columns), np.nan, np.float32)
    neurons = ((np.arange(rows) + 0.5) / rows * tallest).astype(np.int64)
    begins = [stretch.columns[0].first_step for stretch in history.sections]
    for number, stretch in enumerate(history.sections):
        names = stretch.layout.kinds.get(kind, [])
        end = begins[number + 1] if number + 1 < len(begins) else last + 1
        inside = np.flatnonzero((steps >= begins[number]) & (steps < end))
        there = neurons[neurons < sum(stretch.layout.sizes[name] for name in names)]
        if not len(inside) or not len(there):
            continue
        known = np.array([column.first_step for column in stretch.columns])
        column_of = np.clip(np.searchsorted(known, steps[inside], side="right") - 1, 0, len(known) - 1)
        values = np.stack([column.activation for column in stretch.columns]).astype(np.float32)  # [C, R]
        pixels[: len(there), inside] = values[np.ix_(column_of, _rows_of(stretch, names)[there])].T
    return pixels


def _rows_of(stretch: Stretch, names: Sequence[str]) -> NDArray[np.int64]:
    """[neurons of these SBLs] the row of a column in which each neuron stands."""
    slices = stretch.layout.row_slices()
    parts = []
    for name in names:
        edges = stretch.layout.edges(name)
        parts.append(slices[name].start + np.repeat(np.arange(len(edges) - 1), np.diff(edges)))
    return np.concatenate(parts)


def _steps(history: NeuronHistory) -> tuple[int, int]:
    return history.sections[0].columns[0].first_step, history.sections[-1].columns[-1].last_step


def _tallest(history: NeuronHistory, kind: str) -> int:
    return max(
        sum(stretch.layout.sizes[name] for name in stretch.layout.kinds.get(kind, []))
        for stretch in history.sections
    )


def _in_words(newest: Stretch, kind: str) -> str:
    names = newest.layout.kinds[kind]
    sizes = np.array([newest.layout.sizes[name] for name in names])
    places = [number for number, name in enumerate(newest.layout.sizes) if name in set(names)]
    silent = float((newest.columns[-1].silent[places] * sizes).sum() / sizes.sum())
    activation = float(newest.columns[-1].activation[_rows_of(newest, names)].astype(np.float32).mean())
    return f"{sizes.sum():,} neurons; at the end {share(activation)} active, {share(silent)} silent"


def _block_of(name: str) -> str:
    numbers = [part for part in name.split(".") if part.isdecimal()]
    return f"block {numbers[0]}" if numbers else name[:8]


def _png(pixels: NDArray[np.float32]) -> str:
    """In base64, with a palette; transparent where there is nothing."""
    from PIL import Image

    level = np.sqrt(np.clip(np.nan_to_num(pixels), 0, 1)) * (LEVELS - 1)
    codes = np.where(np.isnan(pixels), LEVELS, np.rint(level)).astype(np.uint8)
    image = Image.frombytes("P", (codes.shape[1], codes.shape[0]), codes.tobytes())
    image.putpalette([*_palette().tobytes(), 0, 0, 0])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=LEVELS)
    return base64.b64encode(file.getvalue()).decode()


def _palette() -> NDArray[np.uint8]:
    """[LEVELS, 3] viridis."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in VIRIDIS], np.float64)
    places = np.linspace(0, len(stops) - 1, LEVELS)
    channels = [np.interp(places, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def _legend() -> Safe:
    stops = [
        element("stop", offset=f"{place / (len(VIRIDIS) - 1):.3f}", stop_color=f"#{stop}")
        for place, stop in enumerate(VIRIDIS)
    ]
    labels = [
        element(
            "text",
            f"{value:.0%}",
            x=f"{20 + value**0.5 * 260:.0f}",
            y=26,
            text_anchor="middle",
            class_="tick",
        )
        for value in SCALE
    ]
    return element(
        "svg",
        element("title", "scale of the heatmaps"),
        element("defs", element("linearGradient", stops, id="viridis")),
        element("rect", x=20, y=2, width=260, height=10, fill="url(#viridis)"),
        labels,
        viewBox="0 0 300 30",
        role="img",
        class_="scale",
    )
