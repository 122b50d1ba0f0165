"""Runs whose logs come to harm: they train on, say so once, and log again where that is possible."""

from __future__ import annotations

import csv
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from growing_runs import fit
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onn_lightning.cli.run_folder import default_loggers
from onn_lightning.loggers import LastingCSVLogger

STEPS, HARM_AT, MEND_AT = 8, 3, 6
LIMIT = 1 << 22
Change = Callable[[Path], None]


class Happens(Callback):
    """Does something to the run folder when so many steps are done."""

    def __init__(self, folder: Path, changes: dict[int, Change]) -> None:
        self.folder, self.changes = folder, changes

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.changes.pop(trainer.global_step, lambda folder: None)(self.folder)


def events_gone(folder: Path) -> None:
    for path in folder.glob("events.*"):
        path.unlink()


def csv_gone(folder: Path) -> None:
    shutil.rmtree(folder / "csv")


def all_gone(folder: Path) -> None:
    shutil.rmtree(folder)


def blocked(folder: Path) -> None:
    """Files where folders were: nobody, root included, can write there."""
    shutil.rmtree(folder)
    folder.write_text("in the way")


def free_again(folder: Path) -> None:
    folder.unlink()


def train(folder: Path, loggers: list[Logger], changes: dict[int, Change]) -> list[str]:
    """A run of eight steps with checkpoints elsewhere; returns what was warned of the logs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        happens = Happens(folder, changes)
        fit(folder.parent / "run", None, None, [happens], max_steps=STEPS, logger=loggers)
    said = [str(warning.message) for warning in caught]
    return [line for line in said if "is gone" in line or "cannot be written" in line]


def rows(folder: Path) -> list[int]:
    """Steps whose loss is in the CSV files."""
    steps = []
    for path in folder.glob("csv/version_*/metrics.csv"):
        with path.open(newline="") as file:
            steps += [int(row["step"]) for row in csv.DictReader(file) if row["train/main_loss"]]
    return steps


def events(folder: Path) -> list[int]:
    """Steps whose loss TensorBoard shows."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars("train/main_loss")]


@pytest.mark.parametrize(
    ("harm", "told"),
    [(events_gone, ["TensorBoard"]), (csv_gone, ["metrics.csv"]), (all_gone, ["TensorBoard", "metrics.csv"])],
)
def test_logs_that_vanish_are_made_anew(
    harm: Change, told: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    said = train(folder, default_loggers(folder), {HARM_AT: harm})
    assert len(said) == len(told)
    for what in told:
        assert any(what in line and "is gone" in line and "lost" in line for line in said), said
    everything, after = list(range(STEPS)), list(range(HARM_AT - 1, STEPS))
    assert rows(folder) == (after if "metrics.csv" in told else everything)
    assert events(folder) == (after if "TensorBoard" in told else everything)
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_rows_that_cannot_be_written_follow_when_they_can(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    said = train(folder, default_loggers(folder), {HARM_AT: blocked, MEND_AT: free_again})
    unwritable = [line for line in said if "cannot be written" in line]
    assert len(unwritable) == 2 and any("rows are kept" in line for line in unwritable), said
    # a step's figures are logged after the callbacks' turn at its end
    assert rows(folder) == list(range(HARM_AT - 1, STEPS))
    assert events(folder) == list(range(MEND_AT - 1, STEPS))


def test_a_run_whose_logs_cannot_be_written_to_its_end_ends_well(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    assert train(folder, default_loggers(folder), {HARM_AT: blocked})
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_logs_that_cannot_be_begun_do_not_let_a_run_start(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(OSError):
        train(tmp_path / "logs", default_loggers(tmp_path / "logs"), {})


@pytest.fixture
def nearly_full() -> Iterator[None]:
    """Files of this process may not grow beyond `LIMIT` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("nearly_full")
def test_a_full_disk_tears_no_row_and_loses_no_column(tmp_path: Path) -> None:
    logger = LastingCSVLogger(tmp_path, name="csv")

    def log(step: int, **figures: Any) -> list[dict[str, str]]:
        logger.log_metrics(figures, step)
        logger.save()
        with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    log(0, early=1.0)
    before = log(1, early=2.0)
    late = {f"late{number}": "x" * (LIMIT // 40) for number in range(41)}
    with pytest.warns(UserWarning, match="cannot be written"):
        during = log(2, **late)
    assert [row | dict.fromkeys(late, "") for row in before] == during
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    after = log(3, early=3.0)
    assert after[:2] == during
    assert after[2:] == [
        {"step": "2", "early": "", **late},
        {"step": "3", "early": "3.0", **dict.fromkeys(late, "")},
    ]
