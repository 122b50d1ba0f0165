"""Runs of the `onn` command whose network grows in mid-run: resumed, tested, killed, distributed."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_standins import Outcome
from growth_standins import MOMENT

from onn_lightning.checkpoint import description

ROOT = Path(__file__).parents[2]
Onn = Callable[..., Outcome]
Write = Callable[..., str]
RUN = Path("runs/tiny")
LAST = "checkpoints/last.ckpt"

GROWTH = {
    "class_path": "growth_standins.MortalGrowth",
    "init_args": {
        "rule": {
            "class_path": "onn_lightning.regulation.plateau.Plateau",
            "init_args": {"patience": 2, "min_improvement": 1.0, "min_activation": 0.0, "cooldown": 0},
        },
        "max_growths": 1,
        "check_every_n_steps": 1,
    },
}
REPORT = {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}}


@pytest.fixture
def growing(write_config: Write) -> Callable[..., str]:
    """The name of a config of a run that grows from 32 to 64 feed-forward neurons at step 3 of 6."""

    def write(**changes: Any) -> str:
        given = {"trainer.callbacks": [GROWTH, REPORT], "trainer.max_steps": 6, "trainer.logger": False}
        return write_config(changes=given | changes)

    return write


def command(*arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """Exit code and output of `onn` in a process of its own."""
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "onn_lightning", *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def last_of(run: Path) -> dict[str, Any]:
    """The end of a run, which must have grown once and be at step 6."""
    checkpoint = description.read(run / LAST)
    assert [entry["step"] for entry in description.history(checkpoint)] == [3]
    assert checkpoint[description.KEY]["trunk"]["intermediate_size"] == 64
    assert checkpoint["global_step"] == 6
    return checkpoint


def assert_same_weights(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name


def test_a_grown_run_is_logged_resumed_and_tested_under_the_config_of_its_beginning(
    onn: Onn, growing: Callable[..., str]
) -> None:
    config = growing(**{"trainer.logger": True, "trainer.callbacks": [GROWTH, REPORT, _no_drawing()]})
    fitted = onn("fit", "--config", config)
    assert fitted.code == 0, fitted.err
    last_of(RUN)
    written = yaml.safe_load((RUN / "config.yaml").read_text())
    assert written["model"]["init_args"]["trunk"]["intermediate_size"] is None
    assert sorted(path.name for path in RUN.glob("checkpoints/*")) == [
        "last.ckpt",
        "step=3-grown.ckpt",
        "step=6.ckpt",
    ]
    assert _logged("train/parameters", "train/main_loss") == list(range(6))
    starts = json.loads((RUN / "record.json").read_text())["starts"]
    assert [(start["first_step"], start["last_step"], start["state"]) for start in starts] == [
        (0, 3, "finished"),
        (3, 6, "finished"),
    ]
    assert "feed-forward of block 0 from 32 to 64 neurons" in starts[0]["error"]

    tested = onn("test", "--config", "runs/tiny/config.yaml")
    assert tested.code == 0, tested.err
    resumed = onn("fit", "--config", config, "--resume", "--trainer.max_steps=7")
    assert resumed.code == 0, resumed.err
    assert description.read(RUN / LAST)["global_step"] == 7

    for verb in (("fit", "--resume"), ("validate",)):
        other = onn(*verb, "--config", config, "--model.trunk.intermediate_size=48")
        assert other.code == 2
        assert "step=7.ckpt has 1 block of width 8 with 64 feed-forward neurons and began with" in (
            other.error_line
        )
        assert "the config has 1 block of width 8 with 48 feed-forward neurons" in other.error_line
    said = onn("validate", "--config", config, "--model.trunk.intermediate_size=64")
    assert said.code == 0, said.err  # the shape that it has now may be written, too


def _no_drawing() -> dict[str, Any]:
    return {"class_path": "onn_lightning.callbacks.Dashboard", "init_args": {"last_drawing_seconds": 0}}


def _logged(*figures: str) -> list[int]:
    steps = []
    for path in sorted(RUN.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            steps += [int(row["step"]) for row in rows if all(row.get(figure) for figure in figures)]
    return steps


@pytest.mark.slow
def test_a_run_killed_during_growth_ends_as_an_unbroken_one(onn: Onn, growing: Callable[..., str]) -> None:
    config = growing()
    assert onn("fit", "--config", config, "--run=unbroken").code == 0
    unbroken = last_of(Path("runs/unbroken"))
    for moment, grown in (("reshaped", False), ("written", True)):
        code, said = command("fit", "--config", config, f"--run={moment}", **{MOMENT: moment})
        assert code == -signal.SIGKILL, said
        assert (Path("runs") / moment / "checkpoints/step=3-grown.ckpt").exists() is grown
        assert onn("fit", "--config", config, f"--run={moment}", "--resume").code == 0
        assert_same_weights(last_of(Path("runs") / moment), unbroken)


@pytest.mark.slow
def test_two_processes_grow_together_however_they_are_launched(growing: Callable[..., str]) -> None:
    config = growing()
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    code, said = command("fit", "--config", config, "--run=lightning", *two)
    assert code == 0, said
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}")
    elsewhere = "--trainer.default_root_dir=torchrun"  # `--run` would be torchrun's own `--run-path`
    code, said = command("fit", "--config", config, elsewhere, *two, launcher=launcher)
    assert code == 0, said
    assert_same_weights(last_of(Path("runs/lightning")), last_of(Path("torchrun/tiny")))
