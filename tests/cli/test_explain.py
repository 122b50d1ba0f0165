"""A mistake in a config or option: one line with the place and the nearest valid name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cli_standins import Outcome

from onn_lightning.cli.explain import explain

CALLBACKS = "lightning.pytorch.callbacks"

CONFIG_MISTAKES: list[tuple[str, Any, str]] = [
    ("trainer.max_stepz", 3, "trainer.max_stepz: unknown key (did you mean 'trainer.max_steps'?)"),
    ("modle", {}, "unknown key 'modle' (did you mean 'model'?)"),
    (
        "model.init_args.warmup_stepz",
        3,
        "model.init_args.warmup_stepz: unknown key (did you mean 'warmup_steps'?)",
    ),
    (
        "model.init_args.trunk.hiden_size",
        3,
        "model.init_args.trunk.hiden_size: unknown key (did you mean 'hidden_size'?)",
    ),
    (
        "model.init_args.trunk.yarn",
        {"facter": 2},
        "model.init_args.trunk.yarn.facter: unknown key (did you mean 'factor'?)",
    ),
    (
        "model.init_args.trunk.hidden_size",
        "abc",
        "model.init_args.trunk.hidden_size: expected int, got 'abc'",
    ),
    (
        "model.class_path",
        "onn_lightning.OmniModul",
        "model.class_path: no 'OmniModul' in module onn_lightning (did you mean 'OmniModule'?)",
    ),
    (
        "model.class_path",
        "cli_standin.Interrupted",
        "model.class_path: no module named 'cli_standin' (did you mean 'cli_standins'?)",
    ),
    (
        "model.class_path",
        "onn_lightning.modul.OmniModule",
        "model.class_path: no 'modul' in module onn_lightning (did you mean 'module'?)",
    ),
    (
        "model.class_path",
        "cli_standins.Sensor",
        "model.class_path: 'cli_standins.Sensor' is not a kind of OmniModule",
    ),
    ("model.clas_path", "x", "unknown key 'clas_path' (did you mean 'class_path'?)"),
    (
        "data.init_args.modalities.0.init_args.scael",
        3,
        "data.init_args.modalities[0].init_args.scael: unknown key (did you mean 'scale'?)",
    ),
    (
        "data.init_args.modalities.0.class_path",
        "cli_standins.Sensr",
        "data.init_args.modalities[0].class_path: no 'Sensr' in module cli_standins (did you mean 'Sensor'?)",
    ),
    (
        "data.init_args.modalities.0.init_args.scale",
        "wide",
        "data.init_args.modalities[0].init_args.scale: expected float, got 'wide'",
    ),
    (
        "data.init_args.train.waves.class_path",
        "datamodules.TextFile",
        "train.waves.class_path: no 'TextFile' in module datamodules (did you mean 'TextFiles'?)",
    ),
    (
        "model.init_args.optimizer.class_path",
        "torch.optim.AdamWW",
        "model.init_args.optimizer.class_path: no 'AdamWW' in module torch.optim (did you mean 'AdamW'?)",
    ),
    (
        "model.init_args.optimizer.init_args",
        {"lrr": 1},
        "model.init_args.optimizer.init_args.lrr: unknown key (did you mean 'lr'?)",
    ),
    (
        "model.init_args.optimizer.init_args.lr",
        "fast",
        "model.init_args.optimizer.init_args.lr: expected float, got 'fast'",
    ),
    (
        "trainer.callbacks",
        [{"class_path": f"{CALLBACKS}.ModelChekpoint"}],
        f"trainer.callbacks[0].class_path: no 'ModelChekpoint' in module {CALLBACKS} "
        "(did you mean 'ModelCheckpoint'?)",
    ),
    (
        "trainer.callbacks",
        [{"class_path": f"{CALLBACKS}.ModelCheckpoint", "init_args": {"save_lst": True}}],
        "trainer.callbacks[0].init_args.save_lst: unknown key (did you mean 'save_last'?)",
    ),
    (
        "trainer.callbacks",
        [{"class_path": "ModelChekpoint"}],
        "'ModelChekpoint' is no class path (package.module.Class) (did you mean 'ModelCheckpoint'?)",
    ),
    ("trainer.max_steps", "many", "trainer.max_steps: expected int, got 'many'"),
]


@pytest.mark.parametrize(("key", "value", "expected"), CONFIG_MISTAKES)
def test_a_mistake_in_a_config_is_one_line_with_file_line_and_nearest_name(
    onn: Callable[..., Outcome], write_config: Callable[..., str], key: str, value: Any, expected: str
) -> None:
    outcome = onn("fit", "--config", write_config(changes={key: value}))
    assert outcome.code == 2
    assert expected in outcome.error_line
    assert outcome.error_line.startswith("tiny.yaml:")


def test_of_several_modalities_and_sources_the_wrong_one_is_named(
    onn: Callable[..., Outcome], write_config: Callable[..., str]
) -> None:
    sensor, wrong = {"class_path": "cli_standins.Sensor"}, {"class_path": "cli_standins.Sensr"}
    outcome = onn("fit", "--config", write_config(changes={"data.init_args.modalities": [sensor, wrong]}))
    assert "data.init_args.modalities[1].class_path: no 'Sensr'" in outcome.error_line
    sources = {"a": {"class_path": "cli_standins.Waves"}, "b": {"class_path": "cli_standins.Waved"}}
    outcome = onn("fit", "--config", write_config(changes={"data.init_args.train": sources}))
    assert "data.init_args.train.b.class_path: no 'Waved'" in outcome.error_line


@pytest.mark.parametrize("key", ["model", "data", "data.init_args.modalities"])
def test_a_required_key_that_is_missing_is_named(
    onn: Callable[..., Outcome], write_config: Callable[..., str], key: str
) -> None:
    outcome = onn("fit", "--config", write_config(changes={key: ...}))
    assert (outcome.code, outcome.error_line) == (2, f"{key}: required, but not given")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "--trainer.max_stepz=3",
            "unknown option '--trainer.max_stepz=3' (did you mean '--trainer.max_steps'?)",
        ),
        ("--ckpt_pth=x", "unknown option '--ckpt_pth=x' (did you mean '--ckpt_path'?)"),
        ("--resum", "unknown option '--resum' (did you mean '--resume'?)"),
        (
            "--model.init_args.trunk.hiden_size=3",
            "command line: model.init_args.trunk.hiden_size: unknown key (did you mean 'hidden_size'?)",
        ),
        (
            "--model.trunk.hiden_size=3",
            "command line: model.init_args.trunk.hiden_size: unknown key (did you mean 'hidden_size'?)",
        ),
        ("--model.warmup_steps=x", "command line: model.init_args.warmup_steps: expected int, got 'x'"),
        (
            "--model.optimizer.init_args.lr=x",
            "command line: model.init_args.optimizer.init_args.lr: expected float, got 'x'",
        ),
        ("--trainer.strategy=fsdp9", "trainer: You selected an invalid strategy name"),
        ("stray", "unexpected argument 'stray'"),
        ("--config", "argument -c/--config: expected one argument"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    onn: Callable[..., Outcome], write_config: Callable[..., str], option: str, expected: str
) -> None:
    outcome = onn("fit", "--config", write_config(), option)
    assert outcome.code == 2
    assert outcome.error_line.startswith(expected)


def test_without_a_config_the_line_says_so(onn: Callable[..., Outcome]) -> None:
    assert onn("fit").error_line.startswith("no --config given (bundled: ")


def test_a_message_of_unknown_form_is_folded_not_lost() -> None:
    assert explain("something\n  new happened", [], [], []) == "something"
    assert explain('Parser key "a.b":\n  strange: thing', [], [], []) == "a.b: strange: thing"
