"""The `onn` command in this process, with the stand-in model and data as base classes."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cli_standins
import pytest
import yaml
from cli_standins import Outcome

from onn_lightning.cli import lightning_cli
from onn_lightning.cli.main import main

TINY_CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "cli_standins.Model",
        "init_args": {
            "trunk": {"hidden_size": 4},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
    },
    "data": {
        "class_path": "cli_standins.Data",
        "init_args": {"modalities": [{"class_path": "cli_standins.Sensor", "init_args": {"width": 3}}]},
    },
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; Lightning's changes to this process are undone."""
    monkeypatch.chdir(tmp_path)
    interrupt = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it after the first one


@pytest.fixture
def onn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`onn("fit", "--config", ...)` -> Outcome."""
    monkeypatch.delenv("ONN_DEBUG", raising=False)

    def standin_main(arguments: list[str]) -> int:
        return lightning_cli.run(arguments, cli_standins.Model, cli_standins.Data)

    monkeypatch.setattr(lightning_cli, "main", standin_main)

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
        (folder / name).write_text(yaml.safe_dump(config, sort_keys=False))
        return name

    return write
