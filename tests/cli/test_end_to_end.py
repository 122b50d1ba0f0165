"""The installed command as a user runs it: a new modality in a file beside the config, real classes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cli_standins
import pytest

from onn_lightning.cli.main import main

ROOT = Path(__file__).parents[2]

CONFIG = """
model:
  trunk: {hidden_size: 16, num_layers: 1, num_heads: 2}
data:
  modalities: [{class_path: my_sensor.Sensor, init_args: {scale: 0.5}}]
  train: {waves: {class_path: my_sensor.Waves}}
  test: {waves: {class_path: my_sensor.Waves}}
  row_length: 32
  rows_per_batch: 2
trainer: {max_steps: 3, accelerator: cpu, log_every_n_steps: 1}
"""


@pytest.mark.slow
def test_a_new_modality_beside_the_config_trains_and_tests_through_yaml_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(cli_standins.__file__, tmp_path / "my_sensor.py")
    (tmp_path / "series.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    trained = subprocess.run(
        [sys.executable, "-m", "onn_lightning", "fit", "--config", "series.yaml", "--resume"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    assert Path("runs/series/checkpoints/last.ckpt").is_file()

    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the current folder
    assert main(["test", "--config", "runs/series/config.yaml"]) == 0
    assert "test/waves/sensor" in capsys.readouterr().out

    assert main(["fit", "--config", "series.yaml", "--data.train.waves.wieght=2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "(did you mean 'weight'?)" in error
