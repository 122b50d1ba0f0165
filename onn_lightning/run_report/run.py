"""`Run`: everything that a run folder says, and what it lacks.

Notable:
- A run may be going on, have been killed, or be of an older version: whatever is missing or damaged is
  named, and everything else is shown.
- Nothing out of the folder is executed: YAML by `safe_load`, arrays without pickle, a checkpoint only by
  `checkpoint.description.read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from onn_lightning.checkpoint.complete import CHECKPOINTS
from onn_lightning.dashboard.curves import Curves, read_curves
from onn_lightning.dashboard.heatmap import FILE as NEURONS
from onn_lightning.dashboard.heatmap import NeuronHistory
from onn_lightning.run_report.checkpoints import CheckpointFile, Described, describe_newest, list_checkpoints
from onn_lightning.run_report.record import FILE as RECORD
from onn_lightning.run_report.record import Record, load_record
from onn_lightning.run_report.samples import RESULTS, SAMPLES, Answers, Results, load_results, load_samples
from onn_lightning.run_report.settings import FILE as CONFIG
from onn_lightning.run_report.settings import Settings, load_settings

Part = TypeVar("Part")
_LOGS = "csv/version_*/metrics.csv"


class NoRunError(ValueError):
    """A folder is no run folder: the message says what is missing."""


@dataclass(frozen=True)
class Missing:
    """A part of a run folder that could not be had.

    Args:
        part: its name.
        reason: why, and what comes of it.
    """

    part: str
    reason: str


@dataclass(frozen=True)
class File:
    """A file of a run folder.

    Args:
        name: its path in the folder.
        num_bytes: its size.
    """

    name: str
    num_bytes: int


@dataclass(frozen=True)
class Run:
    """All that a run folder says.

    Args:
        folder: it, absolute.
        settings: its config.
        record: its starts, counts, times and sources.
        curves: all that was logged.
        logs_written: when its CSV logs were last written, seconds since 1970; None: there are none.
        neurons: their activation over time.
        results, answers: by stage.
        checkpoints: on disk, the newest last.
        described: what the newest complete one says.
        files: in the folder itself.
        missing: what is None above, and why.
    """

    folder: Path
    settings: Settings | None
    record: Record | None
    curves: Curves
    logs_written: float | None
    neurons: NeuronHistory | None
    results: dict[str, Results]
    answers: dict[str, Answers]
    checkpoints: list[CheckpointFile]
    described: Described | None
    files: list[File]
    missing: list[Missing]

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        NoRunError: if it is none.
    """
    if not folder.is_dir():
        raise NoRunError(f"{folder}: no such folder; give a run folder of `onn fit`, as runs/quickstart")
    logs = list(folder.glob(_LOGS))
    checkpoints = list_checkpoints(folder)
    if not (logs or checkpoints or (folder / CONFIG).is_file() or (folder / RECORD).is_file()):
        raise NoRunError(
            f"{folder}: no run folder, it has neither {CONFIG} nor {RECORD}, csv/ or checkpoints/; give the "
            "folder of one run of `onn fit`"
        )
    missing: list[Missing] = []

    def try_to(part: str, without: str, read: Callable[[], Part]) -> Part | None:
        try:
            return read()
        except Exception as error:  # a damaged file can make its reader fail in any way
            reason = "not there" if not (folder / part).exists() else " ".join(str(error).split())
            missing.append(Missing(part, f"{reason}: {without}"))
            return None

    settings = try_to(CONFIG, "the config is not shown", lambda: load_settings(folder))
    record = try_to(
        RECORD,
        "starts, tokens, times and versions are not known, or only what the logs say",
        lambda: load_record(folder),
    )
    curves = try_to("csv", "there are no curves", lambda: read_curves(folder))
    if curves is not None and not curves.figures:
        missing.append(Missing(_LOGS, "nothing is logged (yet): there are no curves"))
    neurons = try_to(
        NEURONS,
        "there are no heatmaps of neurons (callback Dashboard)",
        lambda: NeuronHistory.load(folder / NEURONS),
    )
    results = try_to(
        RESULTS,
        "held-out results are those of the logs, where there are any (written at the run's end)",
        lambda: load_results(folder),
    )
    answers = try_to(SAMPLES, "there are no samples (written at the run's end)", lambda: load_samples(folder))
    described = try_to(CHECKPOINTS, "what the network is, is not known", lambda: describe_newest(folder))
    if described is None and all(part.part != CHECKPOINTS for part in missing):
        missing.append(Missing(CHECKPOINTS, "no complete one (yet): what the network is, is not known"))
    return Run(
        folder=folder.resolve(),
        settings=settings,
        record=record,
        curves=curves or Curves({}),
        logs_written=max((path.stat().st_mtime for path in logs), default=None),
        neurons=neurons if neurons is None or len(neurons) else None,
        results=results or {},
        answers=answers or {},
        checkpoints=checkpoints,
        described=described,
        files=sorted(
            (File(path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file()),
            key=lambda file: file.name,
        ),
        missing=missing,
    )
