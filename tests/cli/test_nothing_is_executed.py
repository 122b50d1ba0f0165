"""Nothing that a checkpoint or a config holds is executed, whatever reads it: canaries, and none sings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_standins import Outcome

from datamodules import OmniDataModule
from onn_lightning import OmniModule
from onn_lightning.checkpoint.description import KEY, CheckpointError

Onn = Callable[..., Outcome]
Write = Callable[..., str]


class Canary:
    """Makes the folder `executed` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path("executed").resolve()),)


@pytest.fixture
def run(onn: Onn, write_config: Write, folder: Path) -> Path:
    """The folder of a trained run, which is read without any harm."""
    assert onn("fit", "--config", write_config(changes={"trainer.logger": False})).code == 0
    return folder / "runs/tiny"


def change(path: Path, to: Path, **entries: Any) -> Path:
    """A copy of a checkpoint with some entries replaced."""
    torch.save(torch.load(path, weights_only=True) | entries, to)
    return to


def test_a_pickle_with_code_is_refused_by_every_verb(onn: Onn, run: Path, folder: Path) -> None:
    last = run / "checkpoints/last.ckpt"
    change(last, last, hyper_parameters=Canary())  # what the link leads to
    for arguments in (
        ("generate", "--checkpoint", "runs/tiny", "--prompt", "a"),
        ("generate", "--checkpoint", str(last), "--prompt", "a"),
        ("test", "--config", "tiny.yaml", "--ckpt_path", str(last)),
        ("test", "--config", "tiny.yaml"),
        ("fit", "--config", "tiny.yaml", "--resume"),
        ("fit", "--config", "tiny.yaml", "--run=other", "--ckpt_path", str(last)),
    ):
        outcome = onn(*arguments)
        assert outcome.code == 1, arguments
        assert ".ckpt: not loaded, it holds more than tensors and plain data" in outcome.error_line
    assert onn("report", "runs/tiny").code == 0
    assert "not loaded, it holds more than tensors" in (run / "report.html").read_text()
    with pytest.raises(CheckpointError, match="not loaded"):
        OmniModule.load_from_checkpoint(last)
    assert not (folder / "executed").exists()


def test_classes_that_a_checkpoint_names_for_lightning_are_not_made(run: Path, folder: Path) -> None:
    (folder / "stranger.py").write_text("import os; os.mkdir('executed')\nmake = print\n")
    evil = {"_instantiator": "stranger.make", "_class_path": "stranger.Thing", "path": "executed"}
    changed = {"hyper_parameters": evil, "datamodule_hyper_parameters": evil, "hparams_name": "kwargs"}
    path = change(run / "checkpoints/last.ckpt", folder / "evil.ckpt", **changed)
    module = OmniModule.load_from_checkpoint(path, trusted_packages=("cli_standins",))
    assert list(module.modalities) == ["sensor"]  # made from our own description alone
    with pytest.raises(RuntimeError, match=r"evil\.ckpt: data is not made from a checkpoint"):
        OmniDataModule.load_from_checkpoint(path)
    assert "stranger" not in sys.modules and not (folder / "executed").exists()


def test_a_package_that_is_not_trusted_is_not_imported(onn: Onn, run: Path, folder: Path) -> None:
    (folder / "stranger.py").write_text("import os; os.mkdir('executed')")
    last = run / "checkpoints/last.ckpt"
    described = torch.load(last, weights_only=True)[KEY]
    described["modalities"][0]["class_path"] = "stranger.Thing"
    change(last, last, **{KEY: described})
    outcome = onn("generate", "--checkpoint", str(last), "--prompt", "a")
    assert outcome.code == 1
    assert "stranger.Thing, from a package that is not trusted" in outcome.error_line
    assert onn("test", "--config", "tiny.yaml").code == 0  # the user's own config says what is made
    assert onn("report", "runs/tiny").code == 0
    assert "stranger" not in sys.modules and not (folder / "executed").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [executed]", "!!python/name:os.mkdir"])
def test_yaml_that_builds_objects_is_refused(onn: Onn, run: Path, folder: Path, tag: str) -> None:
    for path in (folder / "evil.yaml", run / "config.yaml"):
        path.write_text(f"seed_everything: {tag}\n")
        outcome = onn("fit", "--config", str(path))
        assert outcome.code == 2
        assert f"{path}:1: only plain YAML is read, no tags that build objects" in outcome.error_line
    assert onn("report", "runs/tiny").code == 0
    assert "config.yaml is no plain YAML" in (run / "report.html").read_text()
    assert not (folder / "executed").exists()


def test_trust_in_a_file_cannot_be_asked_for(onn: Onn, run: Path) -> None:
    for verb in ("fit", "test"):
        outcome = onn(verb, "--config", "tiny.yaml", "--weights_only", "false")
        assert outcome.code == 2
        assert "--weights_only false would run whatever code is in a checkpoint" in outcome.error_line
