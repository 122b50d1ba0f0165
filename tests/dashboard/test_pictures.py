"""The pictures themselves: what is in them, and that it can be read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from onn_lightning.dashboard import draw
from onn_lightning.dashboard.curves import Curve, Curves
from onn_lightning.dashboard.heatmap import NeuronHistory

SIZES = {"0.attention.qkv": 12, "0.attention.output": 4, "0.moie.up": 10, "0.moie.down": 4}
KEYS = {
    "losses": ("train/main_loss", "train/text_loss"),
    "bits per byte": ("val/zh/bits_per_byte", "val/a.b c/bits_per_byte"),
    "held out: right answers": ("val/digits/exact_match", "val/digits/accuracy"),
    "held out: losses": ("val/zh/text_loss",),
    "predictive integrity (PI)": ("train/pi", "train/pi_ema", "train/pi/text"),
    "PI by block": tuple(f"train/pi_block/{block}" for block in range(20)),
    "surprise": ("train/surprise",),
    "tau and prior_std": ("train/tau", "train/prior_std"),
    "activation": ("train/activation_rate", "train/activation/qkv", "train/activation/up"),
    "sigma": ("train/sigma", "train/sigma/qkv"),
    "gate": ("train/gate", "train/gate/up"),
    "KL from the prior": ("train/kl_loss",),
    "gate loss (spread of surprise)": ("train/gate_loss",),
    "weights of the losses": ("train/w_gate", "train/w_kl", "train/loss_weight/text"),
    "plasticity": ("train/plasticity/matrix",),
    "learning rate": ("lr-MuonAdamW/matrix",),
    "throughput": ("train/tokens_per_second",),
}


def curves(points: int, keys: tuple[str, ...] | None = None) -> Curves:
    rng = np.random.default_rng(0)
    keys = keys if keys is not None else tuple(key for panel in KEYS.values() for key in panel)
    steps = np.arange(1.0, points + 1)
    return Curves({key: Curve(steps, 0.01 + rng.random(points)) for key in keys})


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("points", [1, 400])
def test_every_figure_has_its_panel_and_every_panel_a_unit(points: int) -> None:
    figure = draw.core_metrics(curves(points))
    assert figure is not None
    assert titles(figure) == list(KEYS)
    assert all(axes.get_ylabel() and axes.get_xlabel() == "step" for axes in figure.axes)
    for axes, keys in zip(figure.axes, KEYS.values(), strict=True):
        shown = {tuple(line.get_xdata()[[0, -1]]) for line in axes.lines}
        assert shown == {(1, points)}
        assert len(axes.lines) == len(keys) * (1 if points < 150 else 2)  # long ones: raw and smoothed
    assert pixels(draw.png(figure)).std() > 10


def test_panels_without_figures_are_left_out_and_nothing_at_all_is_no_picture() -> None:
    figure = draw.core_metrics(curves(3, ("train/main_loss", "train/unheard_of")))
    assert figure is not None
    assert titles(figure) == ["losses"]
    assert draw.core_metrics(Curves({})) is None
    assert draw.core_metrics(curves(3, ("train/unheard_of",))) is None


def test_legends_stand_beside_the_axes_and_panels_do_not_overlap() -> None:
    figure = draw.core_metrics(curves(30))
    assert figure is not None
    draw.png(figure)  # lays everything out
    boxes = [axes.get_window_extent() for axes in figure.axes]
    for axes, box in zip(figure.axes, boxes, strict=True):
        legend = axes.get_legend()
        if legend is not None:
            extent = legend.get_window_extent()
            assert extent.x0 >= box.x1
            assert not any(extent.overlaps(other) for other in boxes)


def test_long_names_are_shortened_chinese_ones_sooner() -> None:
    names = ("a_source_with_quite_a_long_name_indeed", "一个名字很长的中文数据来源的名字", "zh")
    figure = draw.core_metrics(curves(3, tuple(f"val/{name}/bits_per_byte" for name in names)))
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["a_source_with_quite_a_l…", "zh, held out", "一个名字很长的中文数据…"]


def test_of_many_blocks_only_some_are_named_the_first_and_the_last_among_them() -> None:
    figure = draw.core_metrics(curves(5, KEYS["PI by block"]))
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "block 0" and names[-1] == "block 19" and len(names) <= 13


def test_figures_that_are_no_numbers_leave_gaps() -> None:
    steps = np.arange(200.0)
    values = np.where(steps > 100, np.nan, steps)
    values[5] = np.inf
    figure = draw.core_metrics(Curves({"train/main_loss": Curve(steps, values)}))
    assert figure is not None
    assert all(np.isfinite(axes.get_ylim()).all() for axes in figure.axes)
    draw.png(figure)
    only_broken = Curves({"train/main_loss": Curve(steps, np.full(200, np.nan))})
    broken = draw.core_metrics(only_broken)
    assert broken is not None
    draw.png(broken)


def test_losses_that_span_decades_are_drawn_on_a_logarithmic_scale() -> None:
    figure = draw.core_metrics(Curves({"train/main_loss": Curve(np.array([1.0, 2.0]), np.array([9.0, 0.1]))}))
    assert figure is not None
    assert figure.axes[0].get_yscale() == "log"
    assert draw.core_metrics(curves(3, ("train/pi",))).axes[0].get_yscale() == "linear"  # type: ignore[union-attr]


def history(*sections: dict[str, int]) -> NeuronHistory:
    result, step = NeuronHistory(), 0
    for sizes in sections:
        for _ in range(3):
            step += 10
            result.add(step, sizes, np.linspace(0, 1, sum(sizes.values())))
    return result


def test_neurons_are_drawn_by_kind_with_time_to_the_right_and_a_labelled_scale() -> None:
    figure = draw.neurons(history(SIZES), "run")
    assert figure is not None
    *kinds, scale = figure.axes
    assert [title.split(":")[0] for title in titles(figure)[:-1]] == ["qkv", "output", "up", "down"]
    assert "fraction of the tokens" in scale.get_ylabel()
    for axes, size in zip(kinds, SIZES.values(), strict=True):
        assert axes.get_ylim() == (size, 0)
        assert axes.get_xlim()[0] == 10 and axes.get_xlim()[1] > 30
        assert axes.get_xlabel() == "step" and "block" in axes.get_ylabel()
    assert "8.3% of them silent" in titles(figure)[0]
    assert pixels(draw.png(figure)).std() > 10


def test_a_single_snapshot_is_a_picture_and_none_is_not() -> None:
    once = NeuronHistory()
    assert draw.neurons(once) is None
    once.add(1, SIZES, np.zeros(30))
    figure = draw.neurons(once)
    assert figure is not None
    draw.png(figure)


def test_a_grown_network_is_drawn_beside_what_it_was() -> None:
    grown = SIZES | {"0.moie.up": 20, "1.moie.up": 10}
    figure = draw.neurons(history(SIZES, grown))
    assert figure is not None
    up = figure.axes[2]
    assert up.get_title(loc="left").startswith("up: 30 neurons")
    extents = sorted(image.get_extent() for image in up.images)
    assert extents[0][:2] == (10, 40)
    assert {max(bottom, top) for *_, bottom, top in extents} == {10, 30}


def test_a_picture_replaces_the_last_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "neurons.png"
    path.write_bytes(b"the last one")
    figure = draw.neurons(history(SIZES))
    assert figure is not None
    draw.save(figure, path)
    assert Image.open(path).size == (1730, 1235)
    assert [file.name for file in tmp_path.iterdir()] == ["neurons.png"]
