"""A run and its folder: what lands where, overrides, resuming, reading back."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli_standins
import pytest
import torch
import yaml
from cli_standins import Outcome

from datamodules import OmniDataModule
from onn_lightning import OmniModule
from onn_lightning.callbacks import GracefulStop, NeuronProtection
from onn_lightning.checkpoint.complete import newest_checkpoint
from onn_lightning.cli.lightning_cli import OmniCLI
from onn_lightning.cli.run_folder import default_callbacks, in_order, with_guards

Onn = Callable[..., Outcome]
Write = Callable[..., str]


def checkpoint_of(folder: Path) -> dict[str, Any]:
    path = newest_checkpoint(folder)
    assert path is not None
    return torch.load(path, weights_only=True)


def test_config_checkpoints_and_logs_lie_in_one_folder_named_after_the_config(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    assert onn("fit", "--config", write_config()).code == 0
    run = folder / "runs" / "tiny"
    assert [path.name for path in (folder / "runs").iterdir()] == ["tiny"]
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        assert [row["train/main_loss"] != "" for row in csv.DictReader(file)].count(True) == 4
    saved = yaml.safe_load((run / "config.yaml").read_text())
    trunk = saved["model"]["init_args"]["trunk"]
    assert (trunk["hidden_size"], trunk["rope_theta"]) == (8, 1_000_000.0)  # defaults are written out
    assert "modalities" not in saved["model"]["init_args"]  # they are written once, under data
    assert {path.name for path in folder.iterdir()} == {"runs", "tiny.yaml"}


def test_later_configs_override_earlier_ones_and_options_override_configs(
    onn: Onn, write_config: Write
) -> None:
    first = write_config()
    Path("faster.yaml").write_text("trainer: {max_epochs: 7}\nmodel: {init_args: {warmup_steps: 9}}\n")
    shown = onn(
        "fit", "--config", first, "--config", "faster.yaml", "--trainer.max_epochs=3", "--print_config"
    )
    assert shown.code == 0
    config = yaml.safe_load(shown.out)
    assert config["trainer"]["max_epochs"] == 3
    assert config["model"]["init_args"]["warmup_steps"] == 9
    assert config["model"]["init_args"]["trunk"]["hidden_size"] == 8
    assert config["data"]["class_path"] == "datamodules.OmniDataModule"


def test_a_printed_config_is_a_config(onn: Onn, write_config: Write, folder: Path) -> None:
    printed = onn("fit", "--config", write_config(), "--model.trunk.num_layers=5", "--print_config").out
    (folder / "printed.yaml").write_text(printed)
    again = onn("fit", "--config", "printed.yaml", "--print_config").out
    assert yaml.safe_load(again) == yaml.safe_load(printed)
    assert yaml.safe_load(again)["model"]["init_args"]["trunk"]["num_layers"] == 5


def test_model_and_data_share_the_same_modality_instances(write_config: Write) -> None:
    cli = OmniCLI(["fit", "--config", write_config(), "--trainer.fast_dev_run=1"], OmniModule, OmniDataModule)
    assert isinstance(cli.model.modalities["sensor"], cli_standins.Sensor)
    assert cli.model.modalities["sensor"] is cli.datamodule.modalities[0]


def test_run_names_the_folder_and_default_root_dir_holds_it(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    assert onn("fit", "--config", write_config(), "--run=a", "--trainer.default_root_dir=elsewhere").code == 0
    assert (folder / "elsewhere" / "a" / "checkpoints" / "last.ckpt").is_file()
    assert not (folder / "runs").exists()


def test_a_second_run_never_mixes_with_the_first(onn: Onn, write_config: Write, folder: Path) -> None:
    config = write_config()
    assert onn("fit", "--config", config).code == 0
    before = (folder / "runs/tiny/checkpoints/last.ckpt").read_bytes()
    outcome = onn("fit", "--config", config)
    assert outcome.code == 2
    assert "runs/tiny already holds a trained run: continue it with --resume" in outcome.error_line
    assert (folder / "runs/tiny/checkpoints/last.ckpt").read_bytes() == before
    assert onn("fit", "--config", config, "--run=second").code == 0


@pytest.mark.parametrize("how", ["--resume", "--ckpt_path=last"])
def test_resume_starts_afresh_where_there_is_nothing_and_goes_on_where_there_is(
    onn: Onn, write_config: Write, folder: Path, how: str
) -> None:
    config = write_config()
    assert onn("fit", "--config", config, how).code == 0
    assert checkpoint_of(folder / "runs/tiny")["global_step"] == 4
    assert onn("fit", "--config", config, how, "--trainer.max_steps=8").code == 0
    assert checkpoint_of(folder / "runs/tiny")["global_step"] == 8
    assert len(list((folder / "runs/tiny/csv").iterdir())) == 2  # what the first part logged is still there


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on_and_ends_as_an_unbroken_one(
    onn: Onn, write_config: Write, folder: Path, number: int, code: int
) -> None:
    config = write_config()
    at_step_2 = ("--model=cli_standins.Interrupted", "--model.at_step=2", f"--model.number={int(number)}")
    assert onn("fit", "--config", config, "--resume", *at_step_2).code == code
    assert checkpoint_of(folder / "runs/tiny")["global_step"] == 3  # the step it fell into was ended
    assert onn("fit", "--config", config, "--resume").code == 0
    assert onn("fit", "--config", config, "--run=unbroken").code == 0
    resumed, unbroken = checkpoint_of(folder / "runs/tiny"), checkpoint_of(folder / "runs/unbroken")
    assert resumed["global_step"] == unbroken["global_step"] == 4
    for name, value in unbroken["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def test_a_torn_checkpoint_is_passed_over_for_the_newest_complete_one(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    assert onn("fit", "--config", write_config()).code == 0
    last = folder / "runs/tiny/checkpoints/last.ckpt"
    whole = last.read_bytes()
    (last.parent / "step=3.ckpt").write_bytes(whole)
    last.write_bytes(whole[: len(whole) // 2])
    assert newest_checkpoint(folder / "runs/tiny") == last.parent / "step=3.ckpt"


def test_the_saved_config_alone_serves_the_other_verbs(onn: Onn, write_config: Write) -> None:
    assert onn("fit", "--config", write_config(), "--resume").code == 0
    Path("tiny.yaml").unlink()
    tested = onn("test", "--config", "runs/tiny/config.yaml")
    assert tested.code == 0
    assert "sensor loss" in tested.out
    assert onn("validate", "--config", "runs/tiny/config.yaml").code == 0
    assert onn("predict", "--config", "runs/tiny/config.yaml").code == 0
    assert onn("fit", "--config", "runs/tiny/config.yaml", "--resume").code == 0


def test_testing_an_untrained_run_is_refused(onn: Onn, write_config: Write) -> None:
    outcome = onn("test", "--config", write_config())
    assert outcome.code == 2
    assert "no checkpoint in runs/tiny/checkpoints: train first" in outcome.error_line


def test_a_missing_checkpoint_file_is_one_line(onn: Onn, write_config: Write) -> None:
    outcome = onn("fit", "--config", write_config(), "--ckpt_path=nosuch.ckpt")
    assert outcome.code == 1
    assert "nosuch.ckpt" in outcome.error_line


def test_a_checkpoint_that_would_run_code_is_refused(onn: Onn, write_config: Write, folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.mkdir, (Path("pwned"),)  # type: ignore[return-value]

    torch.save({"state_dict": Evil()}, "evil.ckpt")
    outcome = onn("test", "--config", write_config(), "--ckpt_path=evil.ckpt")
    assert outcome.code == 1
    assert outcome.error_line.startswith("evil.ckpt: not loaded, it holds more than tensors and plain data")
    assert not (folder / "pwned").exists()


def test_a_checkpoint_of_another_shape_is_one_line(onn: Onn, write_config: Write) -> None:
    assert onn("fit", "--config", write_config()).code == 0
    outcome = onn("test", "--config", write_config(), "--model.trunk.hidden_size=16")
    assert outcome.code == 1
    assert outcome.error_line.startswith("the checkpoint does not fit the model of this config")
    assert "size mismatch" in outcome.error_line


def test_a_damaged_checkpoint_is_one_line(onn: Onn, write_config: Write, folder: Path) -> None:
    assert onn("fit", "--config", write_config()).code == 0
    whole = (folder / "runs/tiny/checkpoints/last.ckpt").read_bytes()
    (folder / "torn.ckpt").write_bytes(whole[: len(whole) // 2])
    outcome = onn("test", "--config", write_config(), "--ckpt_path=torn.ckpt")
    assert outcome.code == 1
    assert outcome.error_line == "--ckpt_path torn.ckpt: the checkpoint is damaged or incomplete"


def test_callbacks_and_loggers_of_the_config_replace_the_defaults(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    every_step = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 1, "save_top_k": -1},
    }
    report = {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}}
    config = write_config(changes={"trainer.callbacks": [every_step, report], "trainer.logger": False})
    assert onn("fit", "--config", config).code == 0
    run = folder / "runs" / "tiny"
    assert not list(run.glob("events.*"))
    assert (run / "config.yaml").is_file()
    assert len(list((run / "checkpoints").iterdir())) == 4


def test_what_stops_a_run_comes_after_all_that_have_to_see_the_step() -> None:
    stop = GracefulStop(grace_period=100)
    given = [stop, NeuronProtection()]
    callbacks = in_order([*with_guards(given), *default_callbacks(given, {})])
    assert [callback for callback in callbacks if isinstance(callback, GracefulStop)] == [stop]
    assert callbacks[-1] is stop
