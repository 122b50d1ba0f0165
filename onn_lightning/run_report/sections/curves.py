"""The charts, and what is marked in them."""

from __future__ import annotations

from onn_lightning.run_report.chart import Mark, all_of
from onn_lightning.run_report.charts import Charts
from onn_lightning.run_report.markup import join, paragraph
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section

MAX_MARKS = 100


def marks_of(run: Run) -> list[Mark]:
    """Resumptions and reshapings of a run."""
    starts = run.record.starts[1:] if run.record is not None else ()
    reshaped = run.described.reshaped if run.described is not None else ()
    marks = [Mark(start.first_step, f"resumed after step {start.first_step:,}") for start in starts]
    marks += [Mark(entry.step, f"step {entry.step:,}: {entry.what}") for entry in reshaped]
    return marks[-MAX_MARKS:]


def section(charts: Charts) -> Section:
    """All charts of a run."""
    if not charts.charts:
        return Section("charts", "Charts", paragraph("Nothing is logged yet.", class_="faint"))
    has_band = any(series.curve.has_band for chart in charts.charts for series in chart.series)
    has_marks = any(chart.marks for chart in charts.charts)
    said = ["The number beside a name is the newest; under the pointer, all charts show the same step."]
    said += (
        ["A pale band reaches from the least to the greatest value behind each point."] if has_band else []
    )
    said += ["Dashed lines: the run was resumed, or its network reshaped."] if has_marks else []
    return Section("charts", "Charts", join(paragraph(" ".join(said), class_="faint"), all_of(charts.charts)))
