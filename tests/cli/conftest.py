"""The `onn` command in this process, on a model and data of a few numbers."""

from __future__ import annotations

import copy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_standins import Outcome

from onn_lightning.cli.main import main

WAVES = {"waves": {"class_path": "cli_standins.Waves"}}
TINY_CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "onn_lightning.OmniModule",
        "init_args": {
            "trunk": {"hidden_size": 8, "num_layers": 1, "num_heads": 2},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
    },
    "data": {
        "class_path": "datamodules.OmniDataModule",
        "init_args": {
            "modalities": [{"class_path": "cli_standins.Sensor", "init_args": {"scale": 0.5}}],
            **{split: WAVES for split in ("train", "validation", "test", "predict")},
            "row_length": 32,
            "rows_per_batch": 2,
            "batches_per_epoch": 4,
        },
    },
    "trainer": {
        "max_steps": 4,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}}],
    },
}


class WithoutAliases(yaml.SafeDumper):
    """Writes shared parts out, as a person would."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; Lightning's changes to this process are undone."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Lightning ignores SIGINT after the first one


@pytest.fixture
def onn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`onn("fit", "--config", ...)` -> Outcome."""
    monkeypatch.setenv("ONN_DEBUG", "")  # so that what `--debug` sets is undone after the test
    monkeypatch.delenv("ONN_DEBUG")
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the current folder

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def write_config(folder: Path) -> Callable[..., str]:
    """`write_config("name.yaml", {"trainer.max_steps": 3})`: the tiny config with changes, by dotted key."""

    def write(name: str = "tiny.yaml", changes: dict[str, Any] | None = None) -> str:
        config = copy.deepcopy(TINY_CONFIG)
        for dotted, value in (changes or {}).items():
            *parents, last = dotted.split(".")
            node: Any = config
            for parent in parents:
                node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
            if value is ...:
                del node[last]
            elif isinstance(node, list):
                node[int(last)] = value
            else:
                node[last] = value
        (folder / name).write_text(yaml.dump(config, Dumper=WithoutAliases, sort_keys=False))
        return name

    return write
