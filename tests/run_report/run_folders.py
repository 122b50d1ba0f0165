"""Run folders made by hand, as training leaves them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from strict_page import StrictPage

from onn_lightning.dashboard.heatmap import NeuronHistory
from onn_lightning.run_report.page import page
from onn_lightning.run_report.run import read_run

NOW = 1_800_000_000.0
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="  # 1 x 1


def write_config(folder: Path, name: str = "zh", **trainer: Any) -> None:
    source = {"class_path": "datamodules.TextFiles", "init_args": {"path": f"data/{name}", "weight": 0.5}}
    config = {
        "trainer": {"max_steps": 100, **trainer},
        "model": {"init_args": {"trunk": {"hidden_size": 8}}},
        "data": {"init_args": {"train": {name: source}, "validation": {name: source}}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))


def write_logs(
    folder: Path, figures: Mapping[str, Sequence[float]], start: int = 0, first_step: int = 0
) -> None:
    """One start's CSV log: a value of every figure a step."""
    path = folder / f"csv/version_{start}/metrics.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *figures])
        for offset, values in enumerate(zip(*figures.values(), strict=True)):
            writer.writerow([first_step + offset, *values])


def start_entry(**changes: Any) -> dict[str, Any]:
    """A start of `record.json`."""
    return {
        "started": NOW - 1000,
        "alive": NOW - 100,
        "state": "finished",
        "last_step": 40,
        "device": "CPU",
        "precision": "32-true",
        "versions": {"Python": "3.11.7"},
        **changes,
    }


def write_record(folder: Path, starts: Sequence[Mapping[str, Any]], **changes: Any) -> None:
    record = {
        "starts": list(starts),
        "max_steps": 100,
        "parameters": {"trunk": 1200, "embedders.text": 300},
        "totals": {
            "tokens": {"text": 900, "image": 60},
            "targets": {"text": 880},
            "places": 1000,
            "seconds": {"forward": 20.0, "backward": 30.0, "validation": 10.0},
        },
        "row_length": 64,
        "rows_per_batch": 2,
        "sources": {
            "train": {"zh": {"documents": 12, "weight": 0.5, "bad_samples": 3}},
            "validation": {"zh": {"documents": 2}},
        },
        "fingerprints": {"text": {"tokenizer": "abc-def-1"}},
        **changes,
    }
    (folder / "record.json").write_text(json.dumps(record))


def write_answers(folder: Path, source: str = "zh", text: str = "how?", answer: str = "so") -> None:
    item = {"modality": "text", "text": text}
    picture = {"modality": "image", "text": "seven.png", "picture": PNG, "caption": "28 x 28 pixels"}
    sample = {"source": source, "prompt": [picture, item], "answer": answer, "expected": "so"}
    (folder / "samples.json").write_text(
        json.dumps({"val": {"model": "step 40", "samples": [sample, {"source": source, "trouble": "torn"}]}})
    )
    results = {"val": {"model": "step 40", "sources": {source: {"bits_per_byte": 2.5, "exact_match": 0.25}}}}
    (folder / "results.json").write_text(json.dumps(results))


def write_neurons(folder: Path, sizes: Mapping[str, int], steps: Sequence[int] = range(0, 40, 4)) -> None:
    history = NeuronHistory()
    for step in steps:
        activation = np.linspace(0, 1, sum(sizes.values()), dtype=np.float32)
        history.add(step, sizes, activation)
    history.save(folder / "neurons.npz")


def whole_run(folder: Path) -> Path:
    """A run with all its parts but a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder)
    falling = [3 - step / 20 for step in range(40)]
    figures = ("train/main_loss", "train/pi", "train/tau", "train/activation_rate", "val/zh/bits_per_byte")
    write_logs(folder, {**dict.fromkeys(figures, falling), "train/something_new": falling})
    write_record(folder, [start_entry()])
    write_answers(folder)
    write_neurons(folder, {"blocks.0.moie.up": 12, "blocks.1.moie.up": 12, "blocks.0.moie.down": 8})
    return folder


def page_of(folder: Path, now: float = NOW) -> StrictPage:
    """The page of a run folder, checked."""
    strict = StrictPage(page(read_run(folder), now))
    strict.check()
    return strict
