"""Curves out of the CSV logs that Lightning's own logger writes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger

from onn_lightning.dashboard.curves import POINTS, CurveReader, Curves, read_curves


def log(folder: Path, steps: range, offset: float = 0.0, key: str = "train/main_loss") -> CSVLogger:
    """One start of a run: a line a step."""
    logger = CSVLogger(folder, name="csv")
    for step in steps:
        logger.log_metrics({key: step + offset}, step)
    logger.save()
    return logger


def points(curves: Curves, key: str = "train/main_loss") -> list[tuple[float, float]]:
    curve = curves.figures[key]
    return list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def test_a_later_start_overrides_what_an_earlier_one_logged_beyond_its_first_step(tmp_path: Path) -> None:
    log(tmp_path, range(0, 10))
    log(tmp_path, range(6, 8), offset=0.5)
    log(tmp_path, range(7, 9), offset=0.25)
    steps = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    values = [0, 1, 2, 3, 4, 5, 6.5, 7.25, 8.25]
    assert points(read_curves(tmp_path)) == list(zip(steps, values, strict=True))


def test_starts_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    for start in range(11):
        log(tmp_path, range(start, start + 2), offset=start / 100)
    assert points(read_curves(tmp_path))[-2:] == [(10, 10.1), (11, 11.1)]


def test_validating_a_run_leaves_its_curves_as_they_were(tmp_path: Path) -> None:
    log(tmp_path, range(5))
    log(tmp_path, range(1), key="val/zh/bits_per_byte")  # what `onn validate` logs, at step 0
    curves = read_curves(tmp_path)
    assert list(curves.figures) == ["train/main_loss"]
    assert curves.last_step == 4


def test_a_run_without_logs_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path).figures == {}
    assert read_curves(tmp_path).last_step == 0


def test_a_reader_follows_a_log_that_grows_and_gains_columns(tmp_path: Path) -> None:
    logger, reader = log(tmp_path, range(3)), CurveReader(tmp_path / "csv")
    assert len(points(reader.read())) == 3
    for step in range(3, 6):
        logger.log_metrics({"train/main_loss": step, "train/a_new_one": 2 * step}, step)
    logger.save()  # rewrites the file: the header has changed
    assert len(points(reader.read())) == 6
    logger.log_metrics({"train/main_loss": 6}, 6)
    logger.save()
    curves = reader.read()
    assert points(curves) == [(step, step) for step in range(7)]
    assert points(curves, "train/a_new_one") == [(3, 6), (4, 8), (5, 10)]
    assert points(read_curves(tmp_path)) == points(curves)


def test_a_log_that_is_being_rewritten_loses_nothing_that_was_read(tmp_path: Path) -> None:
    log(tmp_path, range(3))
    path, reader = tmp_path / "csv/version_0/metrics.csv", CurveReader(tmp_path / "csv")
    before = points(reader.read())
    whole = path.read_bytes()
    for torn in (b"", whole[:7], whole[:-4]):
        path.write_bytes(torn)
        assert points(reader.read()) == before
    path.write_bytes(whole + b"3,3.5\r\n4,4")  # the last line is still under way
    header = whole.splitlines()[0].decode().split(",")
    assert header == ["step", "train/main_loss"]
    assert points(reader.read()) == [*before, (3, 3.5)]


def test_numbers_that_are_none_are_kept_as_they_are_and_other_words_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "csv" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(
        "epoch,step,train/main_loss\n0,0,1.0\n0,1,nan\n0,2,inf\n0,3,\n0,4,oops\n0,five,5\ntoo,few\n0,6,6\n"
    )
    steps, values = zip(*points(read_curves(tmp_path)), strict=True)
    assert steps == (0, 1, 2, 6)
    assert values[0] == 1 and math.isnan(values[1]) and values[2] == math.inf and values[3] == 6


def test_a_figure_may_have_commas_and_quotes_in_its_name(tmp_path: Path) -> None:
    key = 'train/a, "b"'
    log(tmp_path, range(3), key=key)
    assert points(read_curves(tmp_path), key) == [(0, 0), (1, 1), (2, 2)]


def test_a_long_run_is_thinned_to_means_over_its_whole_length(tmp_path: Path) -> None:
    count = 5 * POINTS + 3
    log(tmp_path, range(count))
    curve = read_curves(tmp_path).figures["train/main_loss"]
    assert POINTS / 2 < len(curve.steps) <= 2 * POINTS + 1
    assert np.allclose(curve.steps, curve.values)  # the figure logged was the step itself
    assert (np.diff(curve.steps) > 0).all()
    assert curve.steps[0] < 8 and curve.steps[-1] > count - 8
