"""The emergency brake in mid-run with real Trainers: when it acts, what it leaves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from growing_runs import TRUNK, at_once, fit, logged, module_of
from lightning.pytorch import Trainer
from toy import ByteText

from onn_lightning.callbacks.emergency_pruning import EmergencyPruning
from onn_lightning.callbacks.growth import GrowOnPlateau
from onn_lightning.checkpoint import description
from onn_lightning.reshaping.budget import count_parameters, measure
from onn_lightning.reshaping.pruning import lifetimes
from onn_lightning.reshaping.rebuild import fit_growing

NOW = count_parameters(TRUNK, [ByteText()])
A_NEURON = 4 * 16 + 2


def braking(folder: Path, brake: dict[str, Any], **settings: Any) -> Trainer:
    """A run with an emergency brake that looks every third step."""
    given = {"min_tokens": 0, "min_neurons": 8, "check_every_n_steps": 3} | brake
    return fit_growing(lambda trunk, file: fit(folder, trunk, file, [EmergencyPruning(**given)], **settings))


def test_a_run_beyond_its_budget_is_cut_back_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lightning.pytorch"):
        trainer = braking(tmp_path, {"parameters": NOW - 10 * A_NEURON})
    module = module_of(trainer)
    assert trainer.global_step == 8
    assert module.trunk.config.feed_forward_sizes == (22,)
    assert [entry["step"] for entry in module.history] == [3]
    assert "block 0: 10 of 32 feed-forward neurons go, lifetime activation" in caplog.text
    assert f"at step 3, {NOW:,} -> {NOW - 10 * A_NEURON:,} parameters" in caplog.text
    sizes = logged(tmp_path, "train/parameters")
    assert (sizes[2], sizes[3]) == (NOW, NOW - 10 * A_NEURON)
    before = description.read(tmp_path / "checkpoints/step=3-before-pruned.ckpt")
    after = description.read(tmp_path / "checkpoints/step=3-pruned.ckpt")
    gone = lifetimes(before, TRUNK)[0].activation.sort().values
    assert torch.equal(lifetimes(after, module.trunk.config)[0].activation.sort().values, gone[10:])


def test_a_budget_of_memory_holds_for_the_checkpoints(tmp_path: Path) -> None:
    fit(tmp_path / "free", None, None, max_steps=1)
    free = description.read(tmp_path / "free/checkpoints/last.ckpt")
    budget = measure(free, TRUNK, [ByteText()], 512).memory - 5000
    trunk = module_of(braking(tmp_path / "run", {"memory": budget}, max_steps=5)).trunk.config
    last = description.read(tmp_path / "run/checkpoints/last.ckpt")
    assert budget - 1000 < measure(last, trunk, [ByteText()], 512).memory <= budget


def test_a_run_within_its_budget_or_without_help_trains_as_without_a_brake(tmp_path: Path) -> None:
    free = module_of(fit(tmp_path / "free", None, None, max_steps=4)).state_dict()
    within = braking(tmp_path / "within", {"parameters": NOW}, max_steps=4)
    with pytest.warns(UserWarning, match="step 3: the budget is out of reach"):
        helpless = braking(tmp_path / "helpless", {"parameters": 100}, max_steps=4)
    for trainer in (within, helpless):
        assert all(torch.equal(free[name], value) for name, value in module_of(trainer).state_dict().items())
    assert not list(tmp_path.glob("*/checkpoints/*before*"))


def test_it_takes_back_what_growth_added_beyond_the_budget(tmp_path: Path) -> None:
    growth = {"max_growths": 1, "check_every_n_steps": 1}
    brake = {"parameters": NOW + 8 * A_NEURON, "min_tokens": 0, "check_every_n_steps": 5}
    trainer = fit_growing(
        lambda trunk, file: fit(
            tmp_path, trunk, file, [GrowOnPlateau(at_once(), **growth), EmergencyPruning(**brake)]
        )
    )
    module = module_of(trainer)
    assert [(entry["step"], entry["trunk"]["intermediate_size"]) for entry in module.history] == [
        (3, 32),
        (5, 64),
    ]
    assert module.trunk.config.feed_forward_sizes == (40,)


def test_a_brake_without_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="no budget"):
        EmergencyPruning()
    with pytest.raises(ValueError, match="min_neurons 0"):
        EmergencyPruning(parameters=1e6, min_neurons=0)
