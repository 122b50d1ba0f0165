"""A chart as SVG: axes, curves, marks; readable without scripts, in light and dark, by a screen reader.

Notable:
- Colours and fonts come from the page's style sheet, so that one drawing serves both themes.
- A curve of many points is its mean over equal parts of the steps, in a pale band from least to greatest.
- The legend is HTML below the drawing, with every series' newest value; the page's script shows there what
  the series are at the step under the pointer.
- Where nothing is known of a series but its name, the style repeats after eight colours: dashes differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onn_lightning.run_report.axis import Axis, tick_label, value_axis
from onn_lightning.run_report.markup import Safe, element, join
from onn_lightning.run_report.quantities import figure
from onn_lightning.run_report.thinning import Thinned

WIDTH, HEIGHT = 440, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 28
COLOURS = 8
DOTTED_UNTIL = 30  # points; so few are marked each by itself


@dataclass(frozen=True)
class Series:
    """One curve of a chart.

    Args:
        label: in the legend.
        curve: thinned.
        bold: whether it stands out.
        depth: from 0 to 1: its colour by its place in an order; None: a colour of its own.
    """

    label: str
    curve: Thinned
    bold: bool = False
    depth: float | None = None


@dataclass(frozen=True)
class Mark:
    """A step at which something happened.

    Args:
        step: when.
        label: what.
    """

    step: float
    label: str


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Args:
        key: names the chart within the page, of letters, digits and dashes.
        title, unit: in words.
        series: at least one.
        first, last: steps at its ends.
        log: logarithmic where the values allow it and span a decade.
        marks: vertical lines.
        left_out: series that there was no room for.
    """

    key: str
    title: str
    unit: str
    series: Sequence[Series]
    first: float
    last: float
    log: bool = False
    marks: Sequence[Mark] = ()
    left_out: int = 0


def draw(chart: Chart) -> Safe:
    """The figure of a chart: title, drawing, legend."""
    steps = Axis(chart.first, max(chart.last, chart.first + 1), LEFT, WIDTH - RIGHT)
    values = value_axis(
        np.concatenate([part for s in chart.series for part in (s.curve.lows, s.curve.highs)]),
        HEIGHT - BOTTOM,
        TOP,
        chart.log,
    )
    drawing = element(
        "svg",
        element("title", f"{chart.title}, {chart.unit}", id=f"{chart.key}-title"),
        element("desc", _in_words(chart), id=f"{chart.key}-words"),
        _grid(steps, values),
        [_mark(mark, steps) for mark in chart.marks],
        [_series(series, place, steps, values) for place, series in enumerate(chart.series)],
        element("line", class_="pointer", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{chart.key}-title {chart.key}-words",
    )
    legend = [_entry(series, place) for place, series in enumerate(chart.series)]
    if chart.left_out:
        legend.append(element("li", f"and {chart.left_out:,} more, not drawn", class_="faint"))
    scale = ", logarithmic" if values.log else ""
    return element(
        "figure",
        element(
            "figcaption",
            element("span", chart.title, class_="title"),
            " ",
            element("span", chart.unit + scale, class_="unit"),
        ),
        drawing,
        element("ul", legend, class_="legend"),
        class_="chart",
        id=chart.key,
    )


def for_script(chart: Chart) -> dict[str, Any]:
    """What the page's script needs to show values at a step."""
    return {
        "key": chart.key,
        "first": chart.first,
        "last": max(chart.last, chart.first + 1),
        "left": LEFT / WIDTH,
        "right": 1 - RIGHT / WIDTH,
        "width": WIDTH,
        "series": [
            {"steps": [round(step) for step in s.curve.steps.tolist()], "values": _digits(s.curve.means)}
            for s in chart.series
        ],
    }


def _grid(steps: Axis, values: Axis) -> Safe:
    parts = []
    ticks = values.ticks(5)
    for tick, y in zip(ticks, values.places(np.array(ticks)), strict=True):
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_place(y), y2=_place(y), class_="grid"))
        parts.append(
            element("text", tick_label(tick), x=LEFT - 6, y=_place(y + 4), text_anchor="end", class_="tick")
        )
    ticks = [tick for tick in steps.ticks(5) if tick == round(tick)]
    for tick, x in zip(ticks, steps.places(np.array(ticks)), strict=True):
        parts.append(element("line", x1=_place(x), x2=_place(x), y1=TOP, y2=HEIGHT - BOTTOM, class_="grid"))
        parts.append(
            element(
                "text",
                tick_label(tick),
                x=_place(min(x, WIDTH - RIGHT - 8)),
                y=HEIGHT - BOTTOM + 15,
                text_anchor="middle",
                class_="tick",
            )
        )
    parts.append(
        element("text", "step", x=LEFT - 6, y=HEIGHT - BOTTOM + 15, text_anchor="end", class_="tick")
    )
    return element("g", parts, aria_hidden="true")


def _mark(mark: Mark, steps: Axis) -> Safe:
    x = _place(steps.places(np.array([mark.step]))[0])
    return element(
        "g",
        element("title", mark.label),
        element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"),
    )


def _series(series: Series, place: int, steps: Axis, values: Axis) -> Safe:
    curve = series.curve
    x, y = steps.places(curve.steps), values.places(curve.means)
    parts = [element("title", series.label)]
    if curve.has_band:
        there = _points(x, values.places(curve.highs))
        back = _points(x[::-1], values.places(curve.lows)[::-1])
        parts.append(element("path", d=f"M{there}L{back}Z", class_="band"))
    if len(x) > 1:
        parts.append(element("path", d=f"M{_points(x, y)}", class_="curve"))
    if len(x) <= DOTTED_UNTIL:
        parts += [element("circle", cx=_place(cx), cy=_place(cy), r=2.2) for cx, cy in zip(x, y, strict=True)]
    for cx in steps.places(curve.broken):
        d = f"M{_place(cx - 3)} {TOP}l6 6m0 -6l-6 6"
        parts.append(element("path", element("title", f"{series.label}: not finite"), d=d, class_="broken"))
    return element("g", parts, class_=f"series {_look(series, place)}", style=_colour(series))


def _entry(series: Series, place: int) -> Safe:
    curve = series.curve
    newest = figure(float(curve.means[-1])) if len(curve.means) else "–"
    broken = f" ({curve.num_broken:,} not finite)" if curve.num_broken else ""
    swatch = element(
        "svg",
        element("line", x1=0, x2=18, y1=5, y2=5, class_="curve"),
        viewBox="0 0 18 10",
        aria_hidden="true",
        class_=f"swatch {_look(series, place)}",
        style=_colour(series),
    )
    return element("li", swatch, f" {series.label}{broken} ", element("b", newest))


def _look(series: Series, place: int) -> str:
    if series.bold:
        return "bold"
    if series.depth is not None:
        return "deep"
    return f"c{place % COLOURS} d{place // COLOURS % 3}"


def _colour(series: Series) -> str | None:
    """From blue over violet to orange: told apart on light and on dark ground."""
    return None if series.depth is None else f"--own: hsl({(215 + 180 * series.depth) % 360:.0f} 70% 52%)"


def _in_words(chart: Chart) -> str:
    said = []
    for series in chart.series:
        curve = series.curve
        if len(curve.means):
            begin, end = figure(float(curve.means[0])), figure(float(curve.means[-1]))
            low, high = figure(float(curve.lows.min())), figure(float(curve.highs.max()))
            said.append(f"{series.label}: {begin} at first, {end} at the end, between {low} and {high}")
    return f"Steps {chart.first:,.0f} to {chart.last:,.0f}. " + "; ".join(said)


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return "L".join(f"{_place(a)} {_place(b)}" for a, b in zip(x, y, strict=True))


def _place(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _digits(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def all_of(charts: Sequence[Chart]) -> Safe:
    """Several charts side by side."""
    return element("div", join(*(draw(chart) for chart in charts)), class_="charts")
