"""Data statistics: sources, shares, bad samples, padding, what tokens depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onn_lightning.run_report.markup import Content, Safe, clipped, facts, join, paragraph, table
from onn_lightning.run_report.quantities import count, figure, share
from onn_lightning.run_report.record import SourceRecord
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.section import Section

MAX_SOURCES, MAX_TEXT = 200, 160
GROWS = "may grow"


def section(run: Run) -> Section:
    """What the run reads."""
    body = join(_rows(run), _modalities(run), _training(run), _held_out(run), _fingerprints(run))
    if not body:
        body = paragraph("Nothing is known of the data: neither config nor record are there.", class_="faint")
    return Section("data", "Data", body)


def _rows(run: Run) -> Safe | None:
    record = run.record
    if record is None or not record.totals.places:
        return None
    tokens = sum(record.totals.tokens.values())
    pairs: list[tuple[str, Content]] = [
        ("row length", f"{record.row_length:,} tokens" if record.row_length else None),
        ("rows in a batch", f"{record.rows_per_batch:,} of each process" if record.rows_per_batch else None),
        ("tokens trained on", count(tokens)),
        ("padding", share(1 - tokens / record.totals.places)),
    ]
    return facts(pairs)


def _modalities(run: Run) -> Safe | None:
    if run.record is None or not run.record.totals.tokens:
        return None
    totals = run.record.totals
    everything = sum(totals.tokens.values()) or 1
    rows = [
        [name, f"{tokens:,}", share(tokens / everything), f"{totals.targets.get(name, 0):,}"]
        for name, tokens in totals.tokens.items()
    ]
    return table("tokens by modality", ["modality", "tokens", "share", "of them predicted"], rows, (1, 2, 3))


def _training(run: Run) -> Safe | None:
    configured = _configured(run, "train")
    recorded = run.record.sources.get("train", {}) if run.record is not None else {}
    described = run.described
    names = list(dict.fromkeys([*configured, *recorded, *(described.documents if described else ())]))
    if not names:
        return None
    weights = {name: _weight(name, run, configured, recorded) for name in names}
    whole = sum(weights.values()) or 1.0
    read = described.tokens_read if described is not None else {}
    all_read = sum(read.values()) or 1.0
    rows = []
    for name in names[:MAX_SOURCES]:
        rows.append(
            [
                clipped(name, 80),
                _kind(configured.get(name)),
                _documents(recorded.get(name), described.documents.get(name) if described else None),
                figure(weights[name]),
                share(weights[name] / whole),
                f"{read[name]:,.0f} ({share(read[name] / all_read)})" if name in read else "",
                f"{recorded[name].bad_samples:,}" if name in recorded else "",
                _where(configured.get(name)),
            ]
        )
    headings = ["source", "kind", "documents", "weight", "share", "tokens read", "bad samples", "where"]
    return join(
        table("training mixture", headings, rows, numbers=range(2, 7)),
        _left_out(names),
        paragraph(
            "Share: of the tokens, as the weights promise. Tokens read: up to the newest checkpoint, about; "
            "with those that still wait in the loader's buffer. Bad samples: skipped by rank 0 "
            "since its start.",
            class_="faint",
        ),
    )


def _held_out(run: Run) -> Safe:
    parts: list[Safe | None] = []
    for split in ("validation", "test", "predict"):
        configured = _configured(run, split)
        recorded = run.record.sources.get(split, {}) if run.record is not None else {}
        names = list(dict.fromkeys([*configured, *recorded]))
        if not names:
            continue
        rows = [
            [
                clipped(name, 80),
                _kind(configured.get(name)),
                _documents(recorded.get(name), None),
                f"{recorded[name].bad_samples:,}" if name in recorded else "",
                _where(configured.get(name)),
            ]
            for name in names[:MAX_SOURCES]
        ]
        parts.append(table(split, ["source", "kind", "documents", "bad samples", "where"], rows, (2, 3)))
        parts.append(_left_out(names))
    return join(parts)


def _fingerprints(run: Run) -> Safe | None:
    if run.record is None or not run.record.fingerprints:
        return None
    rows = [
        [clipped(name, 80), clipped(", ".join(f"{key} {value}" for key, value in settings.items()), 400)]
        for name, settings in run.record.fingerprints.items()
    ]
    return table("what tokens depend on", ["modality", "settings"], rows)


def _left_out(names: list[str]) -> Safe | None:
    if len(names) <= MAX_SOURCES:
        return None
    return paragraph(f"{len(names) - MAX_SOURCES:,} more sources are left out.", class_="faint")


def _configured(run: Run, split: str) -> dict[str, Any]:
    """Sources of a split as the config has them."""
    sources = run.settings.at("data", "init_args", split) if run.settings is not None else None
    return {str(name): source for name, source in sources.items()} if isinstance(sources, Mapping) else {}


def _weight(
    name: str, run: Run, configured: Mapping[str, Any], recorded: Mapping[str, SourceRecord]
) -> float:
    if name in recorded:
        return recorded[name].weight
    if run.described is not None and name in run.described.weights_now:
        return run.described.weights_now[name]
    given = _init_args(configured.get(name)).get("weight", 1.0)
    return float(given) if isinstance(given, int | float) else 1.0


def _documents(recorded: SourceRecord | None, in_checkpoint: str | None) -> str:
    if recorded is not None and recorded.documents is not None:
        return f"{recorded.documents:,}{f', {GROWS}' if recorded.grows else ''}"
    if in_checkpoint is not None:
        return f"{int(in_checkpoint):,}" if in_checkpoint.isdecimal() else clipped(in_checkpoint, 40)
    return ""


def _init_args(source: Any) -> Mapping[str, Any]:
    found = source.get("init_args") if isinstance(source, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _kind(source: Any) -> str:
    found = source.get("class_path", "") if isinstance(source, Mapping) else ""
    return clipped(str(found).rpartition(".")[2], 60)


def _where(source: Any) -> str:
    """The first argument of a source that names a place."""
    given = _init_args(source)
    return clipped(
        next((given[key] for key in ("path", "paths", "root", "name") if given.get(key)), ""), MAX_TEXT
    )
