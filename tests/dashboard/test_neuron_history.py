"""The history of the neurons: bounded, exact means, sections, files."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from onn_lightning.dashboard.heatmap import COLUMNS, ROWS, Layout, NeuronHistory

SIZES = {"0.attention.qkv": 6, "0.moie.up": 4, "1.attention.qkv": 6, "1.moie.up": 8}
N = sum(SIZES.values())


def snapshots(count: int, neurons: int = N) -> np.ndarray:
    """[count, N], the same every time."""
    return np.random.default_rng(0).random((count, neurons)).astype(np.float32)


def filled(count: int, sizes: dict[str, int] = SIZES) -> NeuronHistory:
    history = NeuronHistory()
    for step, activation in enumerate(snapshots(count, sum(sizes.values())), start=1):
        history.add(step, sizes, activation)
    return history


def equal(one: NeuronHistory, other: NeuronHistory) -> bool:
    ours, theirs = one.arrays(), other.arrays()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("count", [1, COLUMNS, COLUMNS + 1, 1100])
def test_the_columns_are_few_span_the_whole_run_and_hold_the_mean_of_their_snapshots(count: int) -> None:
    columns = filled(count).sections[0].columns
    assert min(count, COLUMNS / 2) <= len(columns) <= COLUMNS
    assert columns[0].first_step == 1 and columns[-1].last_step == count
    assert sum(column.snapshots for column in columns) == count
    for before, after in itertools.pairwise(columns):
        assert after.first_step == before.last_step + 1
    for column in (columns[0], columns[len(columns) // 2], columns[-1]):
        mean = snapshots(count)[column.first_step - 1 : column.last_step].mean(axis=0)
        assert np.allclose(column.activation, mean, atol=2e-3)  # kept in half precision


def test_neurons_share_rows_where_they_are_many_and_no_row_spans_two_layers() -> None:
    sizes = {f"{block}.moie.up": 1000 + block for block in range(3)} | {"0.moie.down": 5}
    layout = Layout(sizes)
    assert layout.kinds == {"up": [f"{block}.moie.up" for block in range(3)], "down": ["0.moie.down"]}
    assert sum(layout.bins[name] for name in layout.kinds["up"]) <= ROWS
    history = NeuronHistory()
    values = np.concatenate([np.full(size, number / 4) for number, size in enumerate(sizes.values())])
    history.add(1, sizes, values)
    column = history.sections[0].columns[0]
    for number, rows in enumerate(layout.row_slices().values()):
        assert (column.activation[rows] == number / 4).all()


def test_more_blocks_than_rows_still_get_a_row_each() -> None:
    sizes = {f"{block}.moie.up": 2 for block in range(ROWS + 1)}
    assert set(Layout(sizes).bins.values()) == {1}


def test_silent_neurons_are_counted_although_their_row_is_not_silent() -> None:
    sizes = {"0.moie.up": 4 * ROWS}
    activation = np.full(4 * ROWS, 0.5)
    activation[::4] = 0.0
    history = NeuronHistory()
    history.add(1, sizes, activation)
    column = history.sections[0].columns[0]
    assert (column.activation > 0).all()
    assert column.silent.tolist() == [0.25]


def test_a_grown_network_begins_a_new_section_and_the_old_one_stays() -> None:
    history = filled(300)
    wider = SIZES | {"0.moie.up": 16}
    for step in range(301, 351):
        history.add(step, wider, np.zeros(N + 12))
    old, new = history.sections
    assert old.layout.sizes == SIZES and new.layout.sizes == wider
    assert old.columns[-1].last_step == 300 and new.columns[0].first_step == 301
    assert len(history) <= COLUMNS
    for step in range(351, 1200):
        history.add(step, wider, np.zeros(N + 12))
    assert len(history) <= COLUMNS
    assert history.sections[0].columns[0].first_step == 1


def test_of_very_many_sections_the_oldest_go() -> None:
    history = NeuronHistory()
    for step in range(1, 2 * COLUMNS):
        history.add(step, {"0.moie.up": step}, np.ones(step))
    assert len(history) == len(history.sections) == COLUMNS
    assert history.sections[-1].columns[-1].last_step == 2 * COLUMNS - 1


def test_broken_figures_are_passed_over_and_wrong_sizes_refused() -> None:
    history = NeuronHistory()
    history.add(1, SIZES, np.full(N, np.nan))
    assert len(history) == 0
    with pytest.raises(ValueError, match="23 neurons, but sizes of 24"):
        history.add(1, SIZES, np.zeros(N - 1))


@pytest.mark.parametrize("at", [0, 1, 256, 257, 700])
def test_a_history_that_was_stored_goes_on_as_one_that_was_not(at: int) -> None:
    unbroken, resumed = NeuronHistory(), NeuronHistory()
    for step, activation in enumerate(snapshots(800), start=1):
        unbroken.add(step, SIZES, activation)
        if step == at + 1:
            resumed = NeuronHistory.from_arrays(resumed.arrays())
        resumed.add(step, SIZES, activation)
    assert equal(unbroken, resumed)


def test_a_file_is_read_back_as_it_was_and_holds_no_objects(tmp_path: Path) -> None:
    history = filled(300)
    history.add(301, SIZES | {"0.moie.up": 5}, np.zeros(N + 1))
    history.save(tmp_path / "neurons.npz")
    assert equal(NeuronHistory.load(tmp_path / "neurons.npz"), history)
    assert [path.name for path in tmp_path.iterdir()] == ["neurons.npz"]
    with np.load(tmp_path / "neurons.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "neurons.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"neurons\.npz: damaged"):
        NeuronHistory.load(path)
    filled(3).save(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="damaged"):
        NeuronHistory.load(path)


def test_arrays_of_something_else_are_refused(tmp_path: Path) -> None:
    arrays = filled(3).arrays()
    with pytest.raises(ValueError, match="do not fit its layout"):
        NeuronHistory.from_arrays(arrays | {"activation_0": arrays["activation_0"][:, 1:]})
    with pytest.raises(ValueError, match="not a history of neurons"):
        NeuronHistory.from_arrays({"weights": np.zeros(3)})
    np.savez(tmp_path / "objects.npz", stride=np.array({}, dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        NeuronHistory.load(tmp_path / "objects.npz")
