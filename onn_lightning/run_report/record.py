"""`record.json`: what a run leaves behind about itself beside its logs.

Notable:
- Written while training, from what the host knows anyway; `onn_lightning.callbacks.RunRecord` does it.
- A run is started as often as somebody resumes it: every start has its own entry. Counts and times go on
  from the checkpoint that a start goes on from, so that a step that was trained twice counts once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onn_lightning.run_report.plain_json import Fields, read_json, write_json

FILE = "record.json"

RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Args:
        started: when, seconds since 1970.
        alive: when it last wrote.
        state: RUNNING, FINISHED, INTERRUPTED or FAILED.
        error: what it failed of, or that its network was reshaped; one line.
        first_step, last_step: optimizer steps of the run before it, and after its newest.
        command: arguments of the command line, as far as it was `onn`.
        device: in words.
        processes: how many trained together.
        precision: as the trainer names it.
        versions: of Python and the packages that matter, by name.
    """

    started: float
    alive: float
    state: str = RUNNING
    error: str = ""
    first_step: int = 0
    last_step: int = 0
    command: tuple[str, ...] = ()
    device: str = ""
    processes: int = 1
    precision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceRecord:
    """One source of a split.

    Args:
        documents: in it when training began; None where nobody looked.
        grows: whether it may grow while it is read.
        weight: of a training source, now.
        bad_samples: skipped so far by the process that writes.
    """

    documents: int | None = None
    grows: bool = False
    weight: float = 0.0
    bad_samples: int = 0


@dataclass(frozen=True)
class Totals:
    """What all of the run's training has taken so far.

    Args:
        tokens: read, by modality.
        targets: predicted, by modality.
        places: of all batches, padding included.
        seconds: by what they were spent on.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)
    places: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """All of it.

    Args:
        starts: the oldest first.
        max_steps: optimizer steps after which training ends; 0: not by steps.
        parameters: trained numbers, by part of the module.
        totals: of all training.
        row_length, rows_per_batch: T, and B of one process.
        sources: by split, by name.
        fingerprints: settings that the tokens depend on, by modality, in words.
    """

    starts: tuple[Start, ...] = ()
    max_steps: int = 0
    parameters: Mapping[str, int] = field(default_factory=dict)
    totals: Totals = Totals()
    row_length: int = 0
    rows_per_batch: int = 0
    sources: Mapping[str, Mapping[str, SourceRecord]] = field(default_factory=dict)
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def save_record(folder: Path, record: Record) -> None:
    """Write or replace the record of a run folder."""
    write_json(folder / FILE, dataclasses.asdict(record))


def load_record(folder: Path) -> Record:
    """Read the record of a run folder.

    Raises:
        UnreadableFileError: if it is missing or damaged.
    """
    fields = read_json(folder / FILE)
    totals = fields.inner("totals")
    return Record(
        starts=tuple(_start(start) for start in fields.objects("starts")),
        max_steps=fields.count("max_steps"),
        parameters=fields.count_by_name("parameters"),
        totals=Totals(
            tokens=totals.count_by_name("tokens"),
            targets=totals.count_by_name("targets"),
            places=totals.count("places"),
            seconds=totals.number_by_name("seconds"),
        ),
        row_length=fields.count("row_length"),
        rows_per_batch=fields.count("rows_per_batch"),
        sources={
            split: {name: _source(sources.inner(name)) for name in sources.names()}
            for split, sources in fields.object_by_name("sources").items()
        },
        fingerprints={
            name: fields.inner("fingerprints").text_by_name(name)
            for name in fields.inner("fingerprints").names()
        },
    )


def _start(fields: Fields) -> Start:
    return Start(
        started=fields.number("started"),
        alive=fields.number("alive"),
        state=fields.text("state"),
        error=fields.text("error"),
        first_step=fields.count("first_step"),
        last_step=fields.count("last_step"),
        command=fields.texts("command"),
        device=fields.text("device"),
        processes=fields.count("processes", 1),
        precision=fields.text("precision"),
        versions=fields.text_by_name("versions"),
    )


def _source(fields: Fields) -> SourceRecord:
    return SourceRecord(
        documents=fields.optional_count("documents"),
        grows=fields.flag("grows"),
        weight=fields.number("weight"),
        bad_samples=fields.count("bad_samples"),
    )
