"""The dashboard on real runs: pictures, TensorBoard, resuming, growing, and everything that may go wrong."""

from __future__ import annotations

import copy
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from ranks import run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from toy import ByteText, Patches, pack

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import Dashboard, PIMonitor
from onn_lightning.dashboard.curves import read_curves
from onn_lightning.dashboard.heatmap import NeuronHistory
from onn_lightning.nn import TrunkConfig

MODALITIES = [ByteText(), Patches()]


def batches(count: int) -> list[Batch]:
    rows = [[[("patch", [0.1, -0.4, 0.3]), ("text", "ab")]], [[("text", "hello")]]]
    return [pack(rows, MODALITIES) for _ in range(count)]


def train(
    folder: Path,
    steps: int,
    *callbacks: Callback,
    feed_forward: int = 24,
    loggers: tuple[str, ...] = ("csv",),
    checkpoint: str | None = None,
    **settings: Any,
) -> Trainer:
    torch.manual_seed(0)
    module = OmniModule(TrunkConfig(16, 2, 2, intermediate_size=feed_forward), copy.deepcopy(MODALITIES))
    made: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, name="csv"),
        "tensorboard": lambda: TensorBoardLogger(folder, name="", version=""),
    }
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        logger=[made[name]() for name in loggers],
        callbacks=[PIMonitor(), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **settings,
    )
    accumulated = steps * settings.get("accumulate_grad_batches", 1)
    loader = DataLoader(batches(accumulated), batch_size=None)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return trainer


class AtStep(Callback):
    """Does something at the end of a step."""

    def __init__(self, step: int, action: Callable[[Trainer], None]) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            self.action(trainer)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def drawn(dashboard: Dashboard) -> None:
    """Wait until no drawing is under way."""
    assert dashboard._process is not None and dashboard._process.wait(120)


def assert_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(next(folder.glob("events.*"))), {"histograms": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_pictures_appear_while_training_goes_on_and_hold_its_end_afterwards(tmp_path: Path) -> None:
    dashboard = Dashboard(every_n_steps=3, snapshot_every_n_steps=2)
    seen = {}

    def look(trainer: Trainer) -> None:
        drawn(dashboard)
        for name in ("core_metrics.png", "neurons.png"):
            assert_picture(tmp_path / name)
            seen[name] = (tmp_path / name).read_bytes()

    train(tmp_path, 7, dashboard, AtStep(4, look), loggers=("csv", "tensorboard"))
    for name, content in seen.items():
        assert_picture(tmp_path / name)
        assert (tmp_path / name).read_bytes() != content
    columns = NeuronHistory.load(tmp_path / "neurons.npz").sections[0].columns
    assert [column.first_step for column in columns] == [1, 2, 4, 6]
    assert not list(tmp_path.glob(".*.tmp"))

    tags = events(tmp_path).Tags()
    assert tags["images"] == ["neurons"]
    figures = ("activation", "gate", "lifetime_activation", "mu_norm", "sigma")
    kinds = ("down", "output", "qkv", "up")
    assert sorted(tags["histograms"]) == sorted(f"{figure}/{kind}" for figure in figures for kind in kinds)
    gates = events(tmp_path).Histograms("gate/qkv")
    assert gates[-1].step == 7 and gates[0].step == 3
    assert gates[-1].histogram_value.num == 2 * 48  # q, k and v of two blocks of width 16
    heatmap = events(tmp_path).Images("neurons")[0]
    with Image.open(io.BytesIO(heatmap.encoded_image_string)) as image:
        assert image.size == (heatmap.width, heatmap.height)


def test_a_resumed_run_goes_on_with_the_history_of_its_checkpoint(tmp_path: Path) -> None:
    unbroken = Dashboard(100, 1, 0)
    train(tmp_path / "unbroken", 8, unbroken)
    checkpoint = str(tmp_path / "at_4.ckpt")
    train(tmp_path / "run", 6, Dashboard(100, 1, 0), AtStep(4, lambda t: t.save_checkpoint(checkpoint)))
    resumed = Dashboard(100, 1, 0)
    train(tmp_path / "run", 8, resumed, checkpoint=checkpoint)
    ours, theirs = resumed.history.arrays(), unbroken.history.arrays()
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    steps = read_curves(tmp_path / "run").figures["train/main_loss"].steps
    assert steps.tolist() == list(range(8))


def test_after_the_network_was_grown_the_history_begins_a_new_section(tmp_path: Path) -> None:
    small, grown = Dashboard(100, 1, 0), Dashboard(100, 1)
    train(tmp_path, 2, small)
    grown.load_state_dict(small.state_dict())
    train(tmp_path, 2, grown, feed_forward=32)
    history = NeuronHistory.load(tmp_path / "neurons.npz")
    assert [section.layout.sizes["0.moie.up"] for section in history.sections] == [24, 32]
    assert_picture(tmp_path / "neurons.png")


def test_the_state_is_plain_tensors_and_a_foreign_one_only_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dashboard = Dashboard(100, 1)
    dashboard.history.add(1, {"0.moie.up": 3}, np.ones(3))
    torch.save(dashboard.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = Dashboard()
    again.load_state_dict(state)
    assert len(again.history) == 1
    del state["stride"]
    with caplog.at_level(logging.WARNING, "lightning.pytorch"):
        again.load_state_dict(state)
    assert len(again.history) == 0
    assert "begins anew" in caplog.text


def test_a_killed_drawing_process_is_said_once_and_training_ends_as_if_nothing_had_happened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dashboard = Dashboard(every_n_steps=2, snapshot_every_n_steps=1)
    killed: list[int] = []

    def kill(trainer: Trainer) -> None:
        process = dashboard._process
        assert process is not None
        deadline = time.monotonic() + 60
        while process.pid in (None, *killed) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.pid is not None and process.pid not in killed
        killed.append(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        drawn(dashboard)

    with caplog.at_level(logging.WARNING, "lightning.pytorch"):
        trainer = train(tmp_path, 5, dashboard, AtStep(2, kill), AtStep(4, kill))
    assert trainer.global_step == 5 and len(killed) == 2
    assert caplog.text.count("killed by signal 9") == 1
    assert_picture(tmp_path / "core_metrics.png")  # of the end: it was started again


def test_a_folder_that_cannot_be_written_hurts_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("core_metrics.png", "neurons.png", "neurons.npz"):
        (tmp_path / f".{name}.tmp").mkdir()  # root may write anywhere, but not over a folder
    with caplog.at_level(logging.WARNING, "lightning.pytorch"):
        trainer = train(tmp_path, 3, Dashboard(1, 1))
    assert trainer.global_step == 3
    assert caplog.text.count("said once") == 1
    assert not list(tmp_path.glob("*.png"))


def test_without_a_csv_logger_only_neurons_are_drawn_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        train(tmp_path, 2, Dashboard(1, 1), loggers=())
    assert caplog.text.count("no CSVLogger") == 1
    assert_picture(tmp_path / "neurons.png")
    assert not (tmp_path / "core_metrics.png").exists()


def test_accumulated_batches_of_one_step_are_one_snapshot(tmp_path: Path) -> None:
    dashboard = Dashboard(100, 1, 0)
    train(tmp_path, 3, dashboard, accumulate_grad_batches=2)
    assert [column.snapshots for column in dashboard.history.sections[0].columns] == [1, 1, 1]


def test_a_fast_dev_run_draws_nothing(tmp_path: Path) -> None:
    train(tmp_path, 1, Dashboard(1, 1), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))


def test_rhythms_below_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0, it must be at least 1"):
        Dashboard(every_n_steps=0)


def fail(trainer: Trainer) -> None:
    raise RuntimeError("on purpose")


def press_ctrl_c(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("end", "error"), [(fail, RuntimeError), (press_ctrl_c, SystemExit)])
def test_a_run_that_is_broken_off_leaves_no_process(
    tmp_path: Path, end: Callable[[Trainer], None], error: type[BaseException]
) -> None:
    dashboard, pids = Dashboard(every_n_steps=1, snapshot_every_n_steps=1), []

    def break_off(trainer: Trainer) -> None:
        drawn(dashboard)
        assert dashboard._process is not None and dashboard._process.pid is not None
        pids.append(dashboard._process.pid)
        end(trainer)

    with pytest.raises(error):
        train(tmp_path, 3, dashboard, AtStep(2, break_off))
    assert not is_there(pids[0])


RUN = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from test_dashboard import AtStep, Dashboard, drawn, train
dashboard = Dashboard(every_n_steps=1, snapshot_every_n_steps=1)
def at_step_2(trainer):
    drawn(dashboard)
    drawing = ("matplotlib.backends.backend_agg", "onn_lightning.dashboard.draw")
    print(dashboard._process.pid, [name for name in drawing if name in sys.modules], flush=True)
    time.sleep(1000)
train(Path({folder!r}), 3, dashboard, AtStep(2, at_step_2))
"""


def test_training_imports_nothing_that_draws_and_when_killed_takes_the_drawing_process_with_it(
    tmp_path: Path,
) -> None:
    program = RUN.format(path=sys.path, folder=str(tmp_path))
    training = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    pid, _, imported = training.stdout.readline().strip().partition(" ")
    assert imported == "[]"
    assert is_there(int(pid))
    training.kill()
    training.communicate()
    deadline = time.monotonic() + 60
    while is_there(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_there(int(pid))


def train_a_rank(rank: int, folder: Path) -> None:
    """Train as one of two ranks; leave how many snapshots it took."""
    dashboard = Dashboard(every_n_steps=2, snapshot_every_n_steps=1)
    train(folder, 4, dashboard, strategy="ddp", devices=2, use_distributed_sampler=False)
    (folder / f"rank_{rank}").write_text(str(len(dashboard.history)))


@pytest.mark.slow
def test_of_two_ranks_the_first_draws_and_none_waits_for_it(tmp_path: Path) -> None:
    run_ranks(train_a_rank, tmp_path)
    assert [(tmp_path / f"rank_{rank}").read_text() for rank in (0, 1)] == ["4", "0"]
    assert_picture(tmp_path / "core_metrics.png")
    assert_picture(tmp_path / "neurons.png")
