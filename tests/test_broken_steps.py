"""Steps that are not finite: they move nothing, are counted and named, and many in a row stop the run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import PARTS, Keep, ScaledFloat32, make_module, watch

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import LossReweighting, LossSpikes, NeuronProtection, PIMonitor, SkipBrokenSteps
from onn_lightning.cli.run_folder import with_guards
from onn_lightning.optim import MuonAdamW, NeuronAdamW
from onn_lightning.regulation import LossSigmoidWeight

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
    "NeuronAdamW": lambda groups: NeuronAdamW(groups, lr=0.01),
    "MuonAdamW": lambda groups: MuonAdamW(groups, lr=0.01),
}
CONSTANT = {"warmup_steps": 1, "min_lr_ratio": 1.0}  # a schedule that a step more does not change
GATE = "trunk.blocks.0.moie.up.gate_param"


def nan_in_loss(batch: Batch) -> Batch:
    """The batch with targets of patches that are no numbers."""
    patches = batch.modalities["patch"]
    assert patches.targets is not None
    broken = replace(patches, targets=torch.full_like(patches.targets, math.nan))
    return replace(batch, modalities={**batch.modalities, "patch": broken})


class BreakGradient(Callback):
    """Puts infinity into a gradient, in some steps counted from 0."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step in self.steps:
            gradient = pl_module.get_parameter(GATE).grad
            assert gradient is not None
            gradient[1] = math.inf


class Snapshots(Callback):
    """Weights and optimizer state after every step."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        parameters = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
        state = trainer.optimizers[0].state_dict()["state"]
        self.taken.append((parameters, copy.deepcopy(state)))


def assert_same_bits(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def moved(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return any(not torch.equal(value, after[name]) for name, value in before.items())


def run(
    batches: Sequence[Batch],
    folder: Path,
    *callbacks: Callback,
    skip: SkipBrokenSteps | None = None,
    optimizer: str = "NeuronAdamW",
    **settings: Any,
) -> tuple[Keep, PIMonitor, OmniModule]:
    module = make_module(optimizer=OPTIMIZERS[optimizer], **CONSTANT)
    keep, monitor = watch(
        batches, folder, module, callbacks=[skip or SkipBrokenSteps(), *callbacks], **settings
    )
    return keep, monitor, module


# ---- nothing moves -------------------------------------------------------------------------------


def broken_in_second_step(broken: str, snapshots: Snapshots) -> tuple[list[Batch], list[Callback]]:
    """The batches and callbacks of a run whose "loss" or "gradient" is NaN in its second step."""
    batches = list(PARTS)
    if broken == "gradient":
        return batches, [BreakGradient(1), snapshots]
    batches[1] = nan_in_loss(batches[1])
    return batches, [snapshots]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_broken_step_keeps_every_bit_and_the_next_one_trains(
    optimizer: str, broken: str, tmp_path: Path
) -> None:
    snapshots, skip = Snapshots(), SkipBrokenSteps()
    batches, hurt = broken_in_second_step(broken, snapshots)
    # BreakGradient acts in an earlier hook of the step than `skip`, so its place does not matter
    with pytest.warns(UserWarning, match=r"optimizer step 2 is skipped"):
        run(batches, tmp_path, *hurt, skip=skip, optimizer=optimizer)
    first, second, third, fourth = snapshots.taken
    assert_same_bits(second, first)
    assert moved(second[0], third[0]) and moved(third[0], fourth[0])
    assert all(value.isfinite().all() for value in fourth[0].values())
    assert skip.total == 1


@pytest.mark.parametrize("optimizer", ["AdamW", "NeuronAdamW", "MuonAdamW"])
def test_a_run_with_a_broken_step_goes_on_as_one_without_it(optimizer: str, tmp_path: Path) -> None:
    """Weights, the weights of the loss, moving average and lifetime counts, protected rows among them."""
    protection = [NeuronProtection()] if optimizer != "AdamW" else []
    runs = []
    for number, batches in enumerate(([PARTS[0], nan_in_loss(PARTS[1]), PARTS[2]], [PARTS[0], PARTS[2]])):
        regulators = [LossReweighting(w_kl=LossSigmoidWeight(0.1)), *protection]
        runs.append(run(batches, tmp_path / str(number), *regulators, optimizer=optimizer))
    (_, hit, hurt), (_, spared, sound) = runs
    assert_same_bits(hurt.state_dict(), sound.state_dict())
    expected = spared.state_dict()
    for name in (
        "fired_tokens_per_neuron",
        "seen_tokens_per_neuron",
        "average.total",
        "average.weight",
    ):
        assert torch.equal(hit.state_dict()[name], expected[name]), name


def test_one_broken_micro_batch_skips_the_whole_step(tmp_path: Path) -> None:
    snapshots, skip = Snapshots(), SkipBrokenSteps()
    batches = [*PARTS[:2], nan_in_loss(PARTS[2]), PARTS[3], *PARTS[:2]]
    with pytest.warns(UserWarning, match="optimizer step 2 is skipped, the loss of patch is not finite"):
        run(batches, tmp_path, snapshots, skip=skip, accumulate_grad_batches=2)
    *_, after_first = snapshots.taken[:2]
    after_second, after_third = snapshots.taken[3], snapshots.taken[5]
    assert_same_bits(after_second, after_first)
    assert moved(after_second[0], after_third[0])
    assert skip.total == 1


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_has_nothing_to_do_in_a_broken_step(algorithm: str, tmp_path: Path) -> None:
    snapshots = Snapshots()
    clipping = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": algorithm}
    run(PARTS, tmp_path, BreakGradient(1), snapshots, **clipping)
    assert_same_bits(snapshots.taken[1], snapshots.taken[0])
    assert moved(snapshots.taken[1][0], snapshots.taken[2][0])


# ---- names and counts ----------------------------------------------------------------------------


def test_the_first_parameter_with_a_broken_gradient_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"step 1 is skipped, the gradient of {GATE} is not finite"):
        run(PARTS, tmp_path, BreakGradient(0))


def test_the_steps_that_were_skipped_are_logged(tmp_path: Path) -> None:
    keep, _, _ = run(PARTS, tmp_path, BreakGradient(1, 3))
    assert [step["train/skipped_steps"] for step in keep.logged] == [0, 1, 1, 2]


def test_broken_steps_in_a_row_stop_the_run_and_say_what_to_do(tmp_path: Path) -> None:
    snapshots = Snapshots()
    batches = [PARTS[0], *[nan_in_loss(batch) for batch in PARTS]]
    module = make_module(optimizer=OPTIMIZERS["AdamW"])
    with pytest.raises(
        RuntimeError, match=r"3 steps in a row.*optimizer step 4.*the loss of patch.*"
    ) as error:
        watch(batches, tmp_path, module, callbacks=[SkipBrokenSteps(3), snapshots])
    for advice in ("learning rate", "gradient_clip_val", "data", "checkpoint"):
        assert advice in str(error.value)
    assert len(snapshots.taken) == 3
    assert_same_bits(dict(module.named_parameters()), snapshots.taken[0][0])


def test_a_whole_step_between_broken_ones_begins_the_row_anew(tmp_path: Path) -> None:
    skip = SkipBrokenSteps(2)
    run([*PARTS, *PARTS], tmp_path, BreakGradient(0, 2, 3 + 1, 6), skip=skip)
    assert skip.total == 4


def test_counts_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    batches = [PARTS[0], nan_in_loss(PARTS[1]), nan_in_loss(PARTS[2]), PARTS[3]]
    run(batches, tmp_path, save, enable_checkpointing=True)
    resumed = SkipBrokenSteps(2)
    with pytest.raises(RuntimeError, match="2 steps in a row"):
        run([nan_in_loss(PARTS[0])] * 4, tmp_path, skip=resumed, checkpoint=tmp_path / "step=2.ckpt")
    assert resumed.total == 2
    # what goes on from the stop has its full number of attempts again
    assert resumed.state_dict() == {"total": 2, "in_a_row": 0}


# ---- where the host does not wait ----------------------------------------------------------------


class SkipOnDevice(SkipBrokenSteps):
    """As on an accelerator, where the optimizer skips by itself and the host reads at the logging rhythm."""

    @staticmethod
    def skips_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
        return SkipBrokenSteps.skips_on_device(optimizer, torch.device("cuda"))


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["NeuronAdamW", "MuonAdamW", "fused"])
def test_a_step_skipped_on_the_device_keeps_every_bit_and_is_told_at_the_logging(
    optimizer: str, broken: str, tmp_path: Path
) -> None:
    snapshots, skip = Snapshots(), SkipOnDevice()
    batches, hurt = broken_in_second_step(broken, snapshots)
    with pytest.warns(UserWarning, match=r"optimizer step 2 is skipped"):
        run(
            batches,
            tmp_path,
            *hurt,
            skip=skip,
            optimizer=optimizer,
            log_every_n_steps=4,
            gradient_clip_val=1.0,
        )
    first, second, third, _ = snapshots.taken
    assert_same_bits(second, first)
    assert moved(second[0], third[0])
    assert all(value.isfinite().all() for value in third[0].values())
    assert skip.total == 1


def test_an_optimizer_that_cannot_skip_is_skipped_by_the_host(tmp_path: Path) -> None:
    skip, snapshots = SkipOnDevice(), Snapshots()
    run(PARTS, tmp_path, BreakGradient(1), snapshots, skip=skip, optimizer="momentum", log_every_n_steps=4)
    assert_same_bits(snapshots.taken[1], snapshots.taken[0])
    assert skip.total == 1


def test_steps_skipped_on_the_device_stop_the_run_at_the_logging(tmp_path: Path) -> None:
    snapshots = Snapshots()
    batches = [PARTS[0], *[nan_in_loss(batch) for batch in PARTS], *PARTS]
    module = make_module(optimizer=OPTIMIZERS["NeuronAdamW"])
    with pytest.raises(RuntimeError, match=r"3 steps in a row.*optimizer step 4.*the loss of patch"):
        watch(batches, tmp_path, module, callbacks=[SkipOnDevice(3), snapshots], log_every_n_steps=5)
    assert len(snapshots.taken) == 4
    assert_same_bits(dict(module.named_parameters()), snapshots.taken[0][0])


# ---- under a loss scaler -------------------------------------------------------------------------


def test_a_step_that_overflows_under_a_loss_scaler_is_the_scalers_business(tmp_path: Path) -> None:
    skip, snapshots = SkipBrokenSteps(1), Snapshots()
    run(PARTS, tmp_path, snapshots, skip=skip, optimizer="AdamW", plugins=[ScaledFloat32(2.0**127)])
    assert skip.total == 0
    assert not moved(snapshots.taken[0][0], snapshots.taken[1][0])


def test_a_loss_that_is_not_finite_counts_under_a_loss_scaler_too(tmp_path: Path) -> None:
    skip, snapshots = SkipBrokenSteps(), Snapshots()
    batches = [PARTS[0], nan_in_loss(PARTS[1]), PARTS[2]]
    run(batches, tmp_path, snapshots, skip=skip, optimizer="AdamW", plugins=[ScaledFloat32(2.0)])
    assert skip.total == 1
    assert_same_bits(snapshots.taken[1], snapshots.taken[0])
    assert moved(snapshots.taken[1][0], snapshots.taken[2][0])


# ---- what is refused, and where it stands --------------------------------------------------------


def test_without_a_monitor_before_it_the_run_does_not_start(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[SkipBrokenSteps(), PIMonitor()], default_root_dir=tmp_path
    )
    with pytest.raises(MisconfigurationException, match="PIMonitor stands after it"):
        trainer.fit(make_module(), PARTS)


def test_a_row_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="max_consecutive is 0"):
        SkipBrokenSteps(0)


def test_a_run_of_the_command_line_skips_broken_steps_right_after_the_monitor() -> None:
    protection, monitor, skip = NeuronProtection(), PIMonitor(), SkipBrokenSteps(3)

    def kinds(*given: Callback) -> list[str]:
        return [type(callback).__name__ for callback in with_guards(given)]

    guards = ["PIMonitor", "SkipBrokenSteps", "LossSpikes"]
    assert kinds(protection) == [*guards, "NeuronProtection"]
    assert kinds(monitor, protection) == [*guards, "NeuronProtection"]
    spikes = LossSpikes(roll_back=True)
    assert with_guards([monitor, spikes, protection, skip]) == [monitor, spikes, protection, skip]
    assert kinds(skip) == ["PIMonitor", "LossSpikes", "SkipBrokenSteps"]
