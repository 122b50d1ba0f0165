"""Strategies as fragments: `--config omni_3b --config strategy/fsdp2`, also in real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_standins import Outcome
from command_processes import ended, printed, recorded, start
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from onn_lightning.cli.main import main
from onn_lightning.cli.model_building import builders

Onn = Callable[..., Outcome]
Write = Callable[..., str]
SIZES = ("--trainer.devices=2", "--trainer.strategy.init_args.data_parallel_size=2")


class NeedsNoMemory(Callback):
    """Sees that a model has no memory yet when callbacks are set up, and has it when training starts."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert all(parameter.is_meta for parameter in pl_module.parameters())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert not any(parameter.is_meta for parameter in pl_module.parameters())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", "lightning.pytorch.strategies.DDPStrategy"),
        ("fsdp1", "lightning.pytorch.strategies.FSDPStrategy"),
        ("fsdp2", "onn_lightning.distributed.FSDP2Strategy"),
        ("fsdp2_tp", "onn_lightning.distributed.FSDP2Strategy"),
    ],
)
def test_every_fragment_goes_with_the_flagship(
    name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "omni_3b", "--config", f"strategy/{name}.yaml", "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert f"class_path: {kind}\n" in shown
    assert "devices: 8" in shown and "num_layers: 25" in shown


def test_only_a_model_that_will_be_sharded_is_built_without_memory() -> None:
    assert builders("ddp") == [] and builders(None) == []
    assert builders(Namespace(class_path="lightning.pytorch.strategies.DDPStrategy")) == []
    assert len(builders(Namespace(class_path="onn_lightning.distributed.FSDP2Strategy"))) == 1


def test_the_older_fsdp_is_refused_on_cpus_in_one_line(onn: Onn, write_config: Write) -> None:
    outcome = onn("fit", "--config", write_config(), "--config", "strategy/fsdp1.yaml", "--trainer.devices=2")
    assert outcome.code != 0
    assert "fsdp" in outcome.error_line and "GPU" in outcome.error_line


@pytest.mark.slow
def test_two_processes_train_go_on_and_test_with_the_fragment(folder: Path, write_config: Write) -> None:
    losses = {"class_path": "command_processes.RecordsLosses", "init_args": {"file": "losses"}}
    report = {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}}
    meta = {"class_path": "test_strategy_configs.NeedsNoMemory"}
    config = write_config(changes={"trainer.callbacks": [losses, report, meta]})
    arguments = ["fit", "--config", config, "--config", "strategy/fsdp2.yaml", *SIZES]
    assert ended(start(arguments, folder, count=2), seconds=120) == [0, 0], printed(folder)
    assert set(recorded(folder / "losses")) == {1, 2, 3, 4}
    more = [*arguments, "--resume", "--trainer.max_steps=6"]
    assert ended(start(more, folder, count=2), seconds=120) == [0, 0], printed(folder)
    assert set(recorded(folder / "losses")) == {1, 2, 3, 4, 5, 6}
    tested = ["test", *arguments[1:]]
    assert ended(start(tested, folder, count=2), seconds=120) == [0, 0], printed(folder)
    assert "held-out results (test)" in printed(folder)
