"""The page: one HTML file that needs no other and asks for none.

Notable:
- The content is there without scripts; the page's own script shows values under the pointer, hides
  series and enlarges charts.
- A content security policy in the page forbids everything but inline styles, pictures in the page and
  this one script, named by its digest: even markup that should not be there could fetch and run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files

from onn_lightning.run_report.chart import Chart, for_script
from onn_lightning.run_report.charts import charts_of
from onn_lightning.run_report.markup import Safe, element, join
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section
from onn_lightning.run_report.sections import (
    about,
    config,
    curves,
    data,
    lifecycle,
    neurons,
    samples,
    summary,
    timings,
)
from onn_lightning.run_report.state import state_of


def page(run: Run, now: float) -> str:
    """The report of a run.

    Args:
        run: what its folder says.
        now: seconds since 1970.
    Returns:
        The HTML of the whole page.
    """
    state = state_of(run, now)
    charts = charts_of(run.curves, curves.marks_of(run))
    sections = [
        summary.section(run, state),
        curves.section(charts),
        neurons.section(run),
        samples.section(run),
        timings.section(run),
        data.section(run),
        lifecycle.section(run, state),
        config.section(run),
        about.section(run, charts, now),
    ]
    head = _head(f"{run.name} – run report")
    body = join(
        element("header", element("h1", run.name), element("p", str(run.folder), class_="faint")),
        _contents(sections),
        element("main", [section.html() for section in sections]),
        _data_for_script(charts.charts),
        element("script", Safe(_own_file("page.js"))),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


def _head(title: str) -> Safe:
    digest = base64.b64encode(hashlib.sha256(_own_file("page.js").encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Safe(_own_file("page.css"))),
    )


def _contents(sections: Sequence[Section]) -> Safe:
    links = [element("li", element("a", section.title, href=f"#{section.key}")) for section in sections]
    return element("nav", element("ul", links), aria_label="Contents")


def _data_for_script(charts: Sequence[Chart]) -> Safe:
    """JSON in which nothing can end the element that it stands in."""
    content = json.dumps([for_script(chart) for chart in charts], separators=(",", ":"))
    harmless = content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return element("script", Safe(harmless), type="application/json", id="chart-data")


def _own_file(name: str) -> str:
    return files("onn_lightning.run_report").joinpath(name).read_text(encoding="utf-8")
