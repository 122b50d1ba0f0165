"""The parts of the report, each by itself: thinning, axes, neurons, configs, how a run stands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from run_folders import NOW, start_entry, whole_run, write_config, write_logs, write_record

from onn_lightning.dashboard.heatmap import NeuronHistory
from onn_lightning.run_report.axis import value_axis
from onn_lightning.run_report.markup import element, join, text
from onn_lightning.run_report.plain_json import UnreadableFileError, read_json, write_json
from onn_lightning.run_report.quantities import count, duration, figure, size
from onn_lightning.run_report.record import Record, SourceRecord, Start, Totals, load_record, save_record
from onn_lightning.run_report.run import read_run
from onn_lightning.run_report.sections.neurons import picture
from onn_lightning.run_report.settings import bundled_origin, differences, load_settings
from onn_lightning.run_report.state import SILENT_AFTER, state_of
from onn_lightning.run_report.thinning import thin


def test_a_thinned_curve_keeps_its_mean_and_the_spike_of_a_single_step() -> None:
    steps = np.arange(10_000.0)
    values = np.sin(steps / 1000)
    values[1234] = 50.0
    thinned = thin(steps, values, 0, 9999, parts=100)
    assert len(thinned.steps) == 100
    assert thinned.highs.max() == 50.0 and thinned.lows.min() == values.min()
    assert np.allclose(thinned.means.mean(), values.mean())
    assert (np.diff(thinned.steps) > 0).all()
    assert ((thinned.lows <= thinned.means) & (thinned.means <= thinned.highs)).all()


def test_a_short_curve_is_drawn_as_it_is_and_what_is_no_number_is_counted() -> None:
    steps, values = np.arange(6.0), np.array([1.0, np.nan, 3.0, np.inf, 5.0, -1e300])
    thinned = thin(steps, values, 0, 5, parts=100)
    assert thinned.steps.tolist() == [0, 2, 4]
    assert thinned.means.tolist() == [1, 3, 5]
    assert not thinned.has_band
    assert thinned.num_broken == 3 and len(thinned.broken) == 3


@pytest.mark.parametrize("low", [-5.0, 0.0, 0.001, 3.0, 1e-30, 1e30])
@pytest.mark.parametrize("span", [0.0, 1e-12, 0.3, 7.0, 1e5, 1e40])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_shows_all_values_between_its_ends_with_a_few_round_numbers(
    low: float, span: float, log: bool
) -> None:
    values = np.array([low, low + span])
    axis = value_axis(values, 200.0, 10.0, log)
    places = axis.places(values)
    assert ((places <= 200.0) & (places >= 10.0)).all()
    assert 1 <= len(axis.ticks(5)) <= 12
    assert ((axis.places(np.array(axis.ticks(5))) >= 9) & (axis.places(np.array(axis.ticks(5))) <= 201)).all()


def test_strings_are_escaped_and_markup_is_not() -> None:
    made = join(element("b", '<i a="1">', title='"><x'), element("img", alt="a & b"))
    assert made == '<b title="&quot;&gt;&lt;x">&lt;i a=&quot;1&quot;&gt;</b><img alt="a &amp; b">'
    assert text("a\x00b\ud800\n") == "a␀b�\n"


def test_numbers_are_written_for_people() -> None:
    assert [figure(value) for value in (0.0, 0.5, 12345.6, 1.5e-7, float("nan"))] == [
        "0",
        "0.5",
        "12,346",
        "1.5e-07",
        "NaN",
    ]
    assert [duration(value) for value in (0.002, 5, 65, 3700, 90_000)] == [
        "2 ms",
        "5 s",
        "1 min 05 s",
        "1 h 01 min",
        "1 d 1 h",
    ]
    assert count(7_081_090) == "7,081,090 (7.08 M)" and size(79_184_043) == "79.2 MB"


def test_neurons_that_were_not_there_yet_are_empty_in_the_picture() -> None:
    history = NeuronHistory()
    for step in range(4):
        history.add(step, {"blocks.0.moie.up": 4}, np.full(4, 0.25, np.float32))
    for step in range(4, 8):
        history.add(step, {"blocks.0.moie.up": 6}, np.full(6, 0.75, np.float32))
    pixels = picture(history, "up")
    assert pixels.shape == (6, 7)
    assert np.isnan(pixels[4:, :3]).all() and np.allclose(pixels[:4, :3], 0.25)
    assert np.allclose(pixels[:, 5:], 0.75)


def test_a_picture_shows_each_neuron_of_each_block_in_its_place() -> None:
    history = NeuronHistory()
    for step in range(0, 40, 10):
        history.add(
            step, {"0.up": 2, "0.down": 1, "1.up": 2}, np.array([0.0, 0.1, 0.9, 0.2, 0.3], np.float32)
        )
    assert np.allclose(picture(history, "up")[:, 0], [0.0, 0.1, 0.2, 0.3], atol=1e-3)
    assert np.allclose(picture(history, "down"), 0.9, atol=1e-3)


def test_a_config_is_compared_with_the_bundled_one_that_the_command_line_names(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "trainer: {max_steps: 7, log_every_n_steps: 10, precision: bf16-true}\n"
        "model: {init_args: {trunk: {num_layers: 4}, warmup_steps: 40, w_gate: 0.5}}\n"
        "seed_everything: 0.0\n"
    )
    command = ["fit", "--config", "quickstart", "--model.w_gate=0.5", "--trainer.max_steps", "7"]
    origin = bundled_origin(command)
    assert origin == ["quickstart.yaml"]
    found = differences(load_settings(tmp_path), origin, command)
    by_field = {entry.field: (entry.bundled, entry.here) for entry in found}
    assert by_field["trainer.max_steps"] == ("620", "7")
    assert by_field["model.init_args.w_gate"] == ("not set", "0.5")
    assert by_field["data.init_args.row_length"] == ("256", "not set")
    for same in ("trainer.log_every_n_steps", "seed_everything", "trainer.precision"):
        assert same not in by_field


@pytest.mark.parametrize(
    "command",
    [[], ["fit", "-c", "mine.yaml"], ["fit", "--config=quickstart", "--config=/etc/passwd"], ["fit", "-c"]],
)
def test_a_config_of_unknown_origin_is_compared_with_nothing(command: list[str]) -> None:
    assert bundled_origin(command) == []


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"state": "finished"}, "finished"),
        ({"state": "interrupted"}, "interrupted"),
        ({"state": "failed", "error": "ValueError: no"}, "failed"),
        ({"state": "running"}, "running"),
        ({"state": "running", "alive": NOW - SILENT_AFTER - 1}, "silent"),
    ],
)
def test_how_a_run_stands_is_what_its_newest_start_says(
    tmp_path: Path, entry: dict[str, object], word: str
) -> None:
    write_config(tmp_path)
    write_record(tmp_path, [start_entry(state="failed"), start_entry(**entry)])
    state = state_of(read_run(tmp_path), NOW)
    assert state.word == word
    assert (state.step, state.max_steps) == (40, 100)


def test_without_a_record_the_logs_tell_how_a_run_stands(tmp_path: Path) -> None:
    write_config(tmp_path, max_steps=3)
    write_logs(tmp_path, {"train/pi": [0.1, 0.2]})
    written = (tmp_path / "csv/version_0/metrics.csv").stat().st_mtime
    assert state_of(read_run(tmp_path), written + 10).word == "running"
    assert state_of(read_run(tmp_path), written + 10_000).word == "silent"
    write_logs(tmp_path, {"train/pi": [0.3]}, start=1, first_step=2)
    assert state_of(read_run(tmp_path), written + 10_000).word == "finished"


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record(
        starts=(Start(1.5, 2.5, "running", command=("fit", "-c", "x"), versions={"torch": "2"}),),
        max_steps=7,
        parameters={"trunk": 3},
        totals=Totals({"text": 5}, {"text": 4}, 8, {"forward": 0.5}),
        row_length=4,
        rows_per_batch=2,
        sources={"train": {"zh": SourceRecord(9, True, 0.5, 1)}, "test": {"zh": SourceRecord()}},
        fingerprints={"text": {"tokenizer": "a"}},
    )
    save_record(tmp_path, record)
    assert dataclasses.asdict(load_record(tmp_path)) == dataclasses.asdict(record)


@pytest.mark.parametrize(
    "content",
    [
        '{"max_steps": -1}',
        '{"max_steps": true}',
        '{"starts": [{"started": "now"}]}',
        '{"totals": []}',
        "[" * 9999,
    ],
)
def test_a_record_that_holds_something_else_is_refused_with_what_is_wrong(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UnreadableFileError, match=r"record\.json"):
        load_record(tmp_path)


def test_json_of_any_text_can_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "中\ud800\x00"})
    assert read_json(tmp_path / "a.json").text("text").startswith("中")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_curves_of_a_run_end_where_its_newest_start_says(tmp_path: Path) -> None:
    run = read_run(whole_run(tmp_path / "run"))
    assert state_of(run, NOW).step == 40
    assert run.curves.last_step == 39
