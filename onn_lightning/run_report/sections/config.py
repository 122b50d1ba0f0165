"""The config: what sets it apart from where it started, and all of it."""

from __future__ import annotations

from onn_lightning.run_report.markup import Safe, clipped, element, join, paragraph, table
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section
from onn_lightning.run_report.settings import Settings, bundled_origin, differences

MAX_TEXT, MAX_ROWS = 200_000, 200


def section(run: Run) -> Section:
    """The config of a run."""
    if run.settings is None:
        return Section(
            "config", "Config", paragraph("The run folder has no readable config.", class_="faint")
        )
    whole = element(
        "details",
        element("summary", "the whole config.yaml, defaults written out"),
        element("pre", clipped(run.settings.text, MAX_TEXT), tabindex=0),
    )
    return Section("config", "Config", join(_differences(run, run.settings), whole))


def _differences(run: Run, settings: Settings) -> Safe:
    command = run.record.starts[0].command if run.record is not None and run.record.starts else ()
    origin = bundled_origin(command)
    if not origin:
        return paragraph("It is not known to have started from a bundled config alone.", class_="faint")
    named = " and ".join(origin)
    found = differences(settings, origin, command)
    if not found:
        return paragraph(f"The same as {named}.")
    rows = [
        [element("code", clipped(entry.field, 120)), clipped(entry.bundled, 200), clipped(entry.here, 200)]
        for entry in found[:MAX_ROWS]
    ]
    return table(f"differences from {named}", ["field", f"in {named}", "in this run"], rows)
