"""The example of a new modality: its bad input, and a run through the command line alone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onn_lightning.modality import BadSampleError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "new_modality"


@pytest.fixture
def sensor(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import sensor

    return sensor


def test_a_recording_gives_normalised_patches_in_order(sensor: Any, tmp_path: Path) -> None:
    readings = [math.sin(tick / 3) * 50 + 7 for tick in range(37)]
    path = tmp_path / "recording.csv"
    path.write_text("time,value\n" + "".join(f"{tick},{x!r}\n" for tick, x in enumerate(readings)))
    modality = sensor.SensorModality(patch_length=8)
    segment = modality.encode(path)
    values = torch.tensor(readings)
    expected = ((values - values.mean()) / values.std(correction=0))[:32].view(4, 8)
    torch.testing.assert_close(segment.features, expected)
    assert torch.equal(segment.features, segment.targets)
    assert torch.equal(modality.encode(readings).features, segment.features)


@pytest.mark.parametrize(
    "content",
    ["", "time,value\n", "time,value\n0,1\n", "time,other\n0,1\n", "time,value\n" + "0,x\n" * 20]
    + ["time,value\n" + row * 20 for row in ("0,1\n", "0,nan\n", "0\n")],
)
def test_bad_recordings_are_refused_by_name(sensor: Any, content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(BadSampleError, match=r"bad\.csv.*drop it"):
        sensor.SensorModality().encode(path)


@pytest.mark.parametrize("raw", [None, 3.0, [[1.0, 2.0]], ["a"], "missing.csv"])
def test_what_is_no_recording_is_refused(sensor: Any, raw: Any) -> None:
    with pytest.raises(BadSampleError, match="sensor recording"):
        sensor.SensorModality().encode(raw)


@pytest.mark.slow
def test_the_example_trains_through_yaml_alone(tmp_path: Path) -> None:
    recordings = [[math.cos((0.2 + 0.1 * (n % 3)) * tick) for tick in range(80)] for n in range(12)]
    documents = [
        {"items": [{"modality": "sensor", "value": x}, {"modality": "text", "text": "ab"[n % 2]}]}
        for n, x in enumerate(recordings)
    ]
    for split in ("train", "validation"):
        path = tmp_path / "data" / "sensor" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLE}"}
    options = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    done = subprocess.run(
        [sys.executable, "-m", "onn_lightning", "fit", "--config", str(EXAMPLE / "sensor.yaml"), *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (metrics,) = (tmp_path / "runs" / "sensor").glob("csv/*/metrics.csv")
    assert "val/springs/sensor_loss" in metrics.read_text()
