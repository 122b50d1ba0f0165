"""The PI monitor in runs of the command line: there by default, in front, set from a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_standins import Outcome

from datamodules import OmniDataModule
from onn_lightning import OmniModule
from onn_lightning.callbacks import PIMonitor
from onn_lightning.cli.lightning_cli import OmniCLI

Onn = Callable[..., Outcome]
Write = Callable[..., str]


def callbacks_of(config: str) -> list[object]:
    cli = OmniCLI(["fit", "--config", config, "--trainer.fast_dev_run=1"], OmniModule, OmniDataModule)
    return list(cli.trainer.callbacks)


def test_a_run_has_a_monitor_in_front_of_the_callbacks_of_its_config(write_config: Write) -> None:
    kinds = [type(callback).__name__ for callback in callbacks_of(write_config())]
    assert kinds[0] == "PIMonitor" and kinds.count("PIMonitor") == 1
    assert kinds.index("RunReport") > 0


def test_the_monitor_of_a_config_is_the_one_of_the_run(write_config: Write) -> None:
    own = {"class_path": "onn_lightning.callbacks.PIMonitor", "init_args": {"ema": 0.75}}
    monitors = [
        callback
        for callback in callbacks_of(write_config(changes={"trainer.callbacks": [own]}))
        if isinstance(callback, PIMonitor)
    ]
    assert [monitor.ema for monitor in monitors] == [0.75]


def test_constants_of_integrity_are_words_or_numbers(onn: Onn, write_config: Write, folder: Path) -> None:
    options = ("--model.pi_alpha=activation_rate", "--model.pi_gamma=0.5")
    assert onn("fit", "--config", write_config(), *options).code == 0
    log = (folder / "runs/tiny/csv/version_0/metrics.csv").read_text().splitlines()
    assert {"train/pi", "train/pi_ema", "train/pi/sensor", "train/pi_block/0", "train/sigma/qkv"} <= set(
        log[0].split(",")
    )


@pytest.mark.parametrize("value", ["gate", "-1"])
def test_another_constant_is_one_line(value: str, onn: Onn, write_config: Write) -> None:
    outcome = onn("fit", "--config", write_config(), f"--model.pi_alpha={value}")
    assert outcome.code != 0
    assert "pi_alpha" in outcome.error_line and "activation_rate" in outcome.error_line
