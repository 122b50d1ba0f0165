"""About the page: how it was made, and what else lies in the run folder."""

from __future__ import annotations

from onn_lightning import __version__
from onn_lightning.dashboard.curves import POINTS
from onn_lightning.run_report.charts import Charts
from onn_lightning.run_report.markup import clipped, join, paragraph, table
from onn_lightning.run_report.quantities import moment, size
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section

MAX_FILES = 60


def section(run: Run, charts: Charts, now: float) -> Section:
    """How a page was made.

    Args:
        run: that it shows.
        charts: on it.
        now: when it is made.
    """
    points = sum(series.curve.num_points for chart in charts.charts for series in chart.series)
    drawn = sum(len(series.curve.means) for chart in charts.charts for series in chart.series)
    said = f"Made by onn_lightning {__version__} at {moment(now)} from {run.folder}; it needs no other file. "
    if points > drawn:
        said += (
            f"{points:,} points are drawn as {drawn:,}: the steps of a chart are divided into {charts.parts} "
            "equal parts, and every part with more than one point shows their mean, and as a pale band their "
            "least and greatest. "
        )
    said += (
        f"Of a curve of more than {2 * POINTS:,} points, neighbours were merged into their mean before that. "
    )
    said += "It holds the whole config, paths and some of the data: look at it before you pass it on."
    rows = [[clipped(file.name, 120), size(file.num_bytes)] for file in run.files[:MAX_FILES]]
    left_out = len(run.files) - MAX_FILES
    note = paragraph(f"{left_out:,} more files are not listed.", class_="faint") if left_out > 0 else None
    files = table("files in the run folder", ["file", "size"], rows, (1,)) if rows else None
    return Section("about", "About this page", join(paragraph(said, class_="faint"), files, note))
