"""Growth in mid-run with real Trainers: what goes on, what changes, what is refused."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from growing_runs import TRUNK, Witness, at_once, fit, logged, module_of
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from toy import ByteText

from onn_lightning.callbacks.growth import GrowOnPlateau
from onn_lightning.checkpoint import description
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping import reshape_checkpoint, widen
from onn_lightning.reshaping.rebuild import NetworkReshaped, fit_growing


def growing(folder: Path, checkpoint: Path | None = None, **settings: Any) -> Trainer:
    """A run that grows at step 3 and every three steps later, as often as `max_growths` allows."""
    limits = {"max_growths": 1, "check_every_n_steps": 1} | settings.pop("growth", {})
    return fit_growing(
        lambda trunk, file: fit(folder, trunk, file, [GrowOnPlateau(at_once(), **limits)], **settings),
        checkpoint,
    )


def test_a_run_that_grows_goes_on_where_it_was(tmp_path: Path) -> None:
    trainer = growing(tmp_path)
    module = module_of(trainer)
    assert trainer.global_step == 8
    assert module.trunk.config.feed_forward_sizes == (64,)  # 1.5 * 32, rounded up to a multiple of 32
    assert [entry["step"] for entry in module.history] == [3]
    witness = next(callback for callback in trainer.callbacks if isinstance(callback, Witness))
    assert witness.widths == [32] * 3 + [64] * 5
    losses, rates, sizes = (
        logged(tmp_path, f) for f in ("train/main_loss", "lr-AdamW/matrix", "train/parameters")
    )
    assert sorted(losses) == list(range(8))  # also the step in which it grew
    assert not rates
    assert sizes[2] < sizes[3] == sum(parameter.numel() for parameter in module.parameters())


def test_it_is_what_reshaping_by_hand_and_resuming_gives(tmp_path: Path) -> None:
    grown = growing(tmp_path / "grown")
    every_third = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    small = fit(tmp_path / "small", None, None, [every_third])
    old = description.read(tmp_path / "step=3.ckpt")
    plan = widen(TRUNK, {0: 64})
    torch.save(reshape_checkpoint(old, plan, [ByteText()]), tmp_path / "hand.ckpt")
    by_hand = fit(tmp_path / "hand", plan.trunk, tmp_path / "hand.ckpt")
    assert old["global_step"] == 3
    for name, value in module_of(by_hand).state_dict().items():
        assert torch.equal(module_of(grown).state_dict()[name], value), name
    one, other = (grown.optimizers[0].state_dict(), by_hand.optimizers[0].state_dict())
    for number, state in one["state"].items():
        for key, value in state.items():
            assert torch.equal(value, other["state"][number][key]), (number, key)
    batches = [
        next(callback for callback in trainer.callbacks if isinstance(callback, Witness)).batches
        for trainer in (grown, by_hand, small)
    ]
    assert batches[0] == batches[1] == batches[2]


def test_it_grows_again_deeper_and_wider_up_to_its_limits(tmp_path: Path) -> None:
    trainer = growing(
        tmp_path, max_steps=14, growth={"add_blocks": 1, "max_growths": 2, "check_every_n_steps": 2}
    )
    module = module_of(trainer)
    assert module.trunk.config.feed_forward_sizes == (96, 96, 96)
    assert [entry["step"] for entry in module.history] == [4, 4, 8, 8]
    assert len(list((tmp_path / "checkpoints").glob("*-grown.ckpt"))) == 2
    assert not list((tmp_path / "checkpoints").glob("*before*"))  # the grown one computes the same


def test_it_does_not_grow_beyond_max_parameters(tmp_path: Path) -> None:
    trainer = growing(tmp_path, growth={"max_parameters": 10_000, "max_growths": 9})
    assert module_of(trainer).trunk.config == TRUNK


def test_validation_in_the_step_of_growth_happens_once(tmp_path: Path) -> None:
    growing(tmp_path, limit_val_batches=1, val_check_interval=3, check_val_every_n_epoch=None)
    assert sorted(logged(tmp_path, "val/s/text_loss")) == [2, 5]


def test_a_run_that_is_fitted_without_a_rebuild_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(NetworkReshaped, match="step=3-grown") as stopped:
        fit(tmp_path, None, None, [GrowOnPlateau(at_once(), check_every_n_steps=1)])
    assert "at step 3" in stopped.value.what
    trainer = growing(tmp_path, stopped.value.checkpoint)
    assert trainer.global_step == 8
    assert module_of(trainer).trunk.config.feed_forward_sizes == (64,)


def test_under_accumulation_it_grows_between_optimizer_steps(tmp_path: Path) -> None:
    trainer = growing(tmp_path, max_steps=5, accumulate_grad_batches=2)
    witness = next(callback for callback in trainer.callbacks if isinstance(callback, Witness))
    assert witness.widths == [32] * 6 + [64] * 4
    plain = fit(tmp_path / "plain", None, None, max_steps=5, accumulate_grad_batches=2)
    assert witness.batches == next(c for c in plain.callbacks if isinstance(c, Witness)).batches


def test_the_old_network_does_not_stay_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[Any]] = []

    def once(trunk: TrunkConfig | None, checkpoint: Path | None) -> None:
        assert not any(module() is not None for module in alive)
        callbacks = [GrowOnPlateau(at_once(), check_every_n_steps=1, max_growths=1), Remember()]
        fit(tmp_path, trunk, checkpoint, callbacks, max_steps=5)

    class Remember(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            alive.append(weakref.ref(pl_module))

    fit_growing(once)
    assert len(alive) == 2


def test_no_growth_in_the_last_step(tmp_path: Path) -> None:
    assert growing(tmp_path, max_steps=3).global_step == 3
    assert not list((tmp_path / "checkpoints").glob("*grown*"))


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    with pytest.raises(MisconfigurationException, match="PIMonitor before GrowOnPlateau"):
        GrowOnPlateau().setup(trainer, module_of(fit(tmp_path, None, None, max_steps=1)), "fit")
    for wrong, message in (
        ({"widen_by": 1}, "nothing would grow"),
        ({"widen_by": 0.5}, "widen_by is 0.5"),
        ({"check_every_n_steps": 0}, "check_every_n_steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            GrowOnPlateau(**wrong)  # type: ignore[arg-type]


def test_a_rule_of_other_settings_begins_anew(tmp_path: Path) -> None:
    fit(tmp_path, None, None, [GrowOnPlateau(at_once(5))], max_steps=2)
    with pytest.warns(UserWarning, match="the rule is another than the checkpoint's"):
        fit(
            tmp_path,
            TrunkConfig(**vars(TRUNK)),
            tmp_path / "checkpoints/last.ckpt",
            [GrowOnPlateau(at_once(7))],
            max_steps=3,
        )
