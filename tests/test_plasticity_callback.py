"""`Plasticity` in real runs: the factor reaches the step and nothing else, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import PARTS, RankPart, ScaledFloat32, make_module, moving
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler
from torch.utils.data import DataLoader

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import PIMonitor, Plasticity
from onn_lightning.optim import MuonAdamW, NeuronAdamW, parameter_groups
from onn_lightning.regulation import Vitals
from onn_lightning.regulation.plasticity import FixedPlasticity, IntegrityPlasticity, PlasticityPolicy

GROUPS = ("matrix", "sigma", "gate", "embedding", "vector")
BATCHES = PARTS * 3


class Scheduled(OmniModule):
    """The module under another optimizer or scheduler."""

    make_scheduler: Callable[[torch.optim.Optimizer], LRScheduler]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(parameter_groups(self))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }


class Rates(Callback):
    """Keeps the learning rates that others see, and those that the steps take."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.taken: list[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_post_hook(
            lambda optimizer, *_: self.taken.append([group["lr"] for group in optimizer.param_groups])
        )
        # ahead of the hook that puts the scheduler's rates back
        hooks = trainer.optimizers[0]._optimizer_step_post_hooks
        hooks.move_to_end(next(reversed(hooks)), last=False)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._see(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._see(trainer)

    def _see(self, trainer: Trainer) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def train(
    folder: Path, *callbacks: Callback, module: OmniModule | None = None, **settings: Any
) -> tuple[OmniModule, Trainer]:
    module = module or make_module(optimizer=moving)
    batches = DataLoader(RankPart(settings.pop("batches", BATCHES)), batch_size=None)
    checkpoint = settings.pop("checkpoint", None)
    trainer = Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "logger": False,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [PIMonitor(), *callbacks],
        }
        | settings
    )
    trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def weights(module: OmniModule) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def quick() -> IntegrityPlasticity:
    return IntegrityPlasticity(low=0.1, high=2.0, half_life=3.0, fast=2.0, slow=6.0)


# ---- the factor reaches the step -----------------------------------------------------------------


OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "AdamW": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
    "fused AdamW": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
    "NeuronAdamW": lambda groups, lr: NeuronAdamW(groups, lr=lr),
    "MuonAdamW": lambda groups, lr: MuonAdamW(groups, lr=lr),
    "SGD": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 3}, {"plugins": [ScaledFloat32()]}],
    ids=["plain", "accumulated", "scaled loss"],
)
def test_a_factor_is_the_same_as_that_learning_rate(
    make: Callable[[Any, float], torch.optim.Optimizer], settings: dict[str, Any], tmp_path: Path
) -> None:
    half, _ = train(
        tmp_path,
        Plasticity(FixedPlasticity(0.5)),
        module=make_module(optimizer=lambda groups: make(groups, 0.02)),
        **settings,
    )
    plain, _ = train(tmp_path, module=make_module(optimizer=lambda groups: make(groups, 0.01)), **settings)
    assert torch.equal(weights(half), weights(plain))


def test_groups_have_policies_of_their_own_and_are_logged(tmp_path: Path) -> None:
    rates, own = Rates(), {"sigma": FixedPlasticity(2.0), "gate": FixedPlasticity(0.25)}
    plasticity = Plasticity(FixedPlasticity(0.5), own)
    _, trainer = train(tmp_path, plasticity, rates)
    expected = {"matrix": 0.5, "sigma": 2.0, "gate": 0.25, "embedding": 0.5, "vector": 0.5}
    scheduled = rates.seen[0]
    taken = [rate * factor for rate, factor in zip(scheduled, expected.values(), strict=True)]
    assert rates.taken[0] == pytest.approx(taken)
    for name, factor in expected.items():
        assert float(trainer.logged_metrics[f"train/plasticity/{name}"]) == factor


def test_it_is_logged_at_the_rhythm_of_the_trainer(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    train(tmp_path, Plasticity(quick()), logger=logger, log_every_n_steps=4)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/plasticity/matrix")
    assert len([row for row in rows[1:] if row.split(",")[column]]) == 3


def test_an_unknown_group_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    plasticity = Plasticity(FixedPlasticity(1.0), {"gates": FixedPlasticity(1.0)})
    with pytest.raises(MisconfigurationException, match=r"\['gates'\].*'matrix', 'sigma', 'gate'"):
        train(tmp_path, plasticity)


def test_the_monitor_must_stand_before_it(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="before Plasticity"):
        train(tmp_path, callbacks=[Plasticity(quick()), PIMonitor()])


# ---- and nothing else ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda optimizer: ExponentialLR(optimizer, gamma=0.9),  # multiplies the rate it finds
        lambda optimizer: CosineAnnealingLR(optimizer, T_max=20),
    ],
    ids=["exponential", "cosine"],
)
@pytest.mark.parametrize("scale", [None, 2.0, 2.0**127], ids=["no scaler", "scaler", "skipping scaler"])
def test_a_chained_scheduler_and_the_learning_rate_monitor_see_their_own_rates(
    make_scheduler: Any, scale: float | None, tmp_path: Path
) -> None:
    """Also in the steps that the scaler skips for an overflow: the first ones at the largest scale."""
    logged, seen = [], []
    for callback in (Plasticity(quick()), None):
        module = make_module(optimizer=moving)
        module.__class__ = Scheduled
        module.make_scheduler = make_scheduler
        rates, logger = Rates(), CSVLogger(tmp_path, name=str(callback is None))
        plugins = [] if scale is None else [ScaledFloat32(scale)]
        callbacks = [rates, LearningRateMonitor(), *([callback] if callback else [])]
        train(tmp_path, *callbacks, module=module, logger=logger, plugins=plugins)
        seen.append(rates.seen)
        assert (len(rates.taken) < len(BATCHES)) == (scale == 2.0**127)
        text = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        columns = [number for number, name in enumerate(text[0].split(",")) if name.startswith("lr-")]
        logged.append([[row.split(",")[number] for number in columns] for row in text[1:]])
        assert len(columns) == len(GROUPS)
    assert seen[0] == seen[1]
    assert all(isinstance(rate, float) for rates in seen[0] for rate in rates)
    assert [row for row in logged[0] if any(row)] == [row for row in logged[1] if any(row)]


class Interrupt(Callback):
    """Fails in the middle of a step, after all factors are in force."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            assert optimizer.param_groups[0]["lr"] < 0.002  # scaled by 0.1
            raise RuntimeError("pulled the plug")


def test_an_exception_in_a_step_leaves_the_schedulers_rates_in_the_optimizer_and_in_its_checkpoint(
    tmp_path: Path,
) -> None:
    module = make_module(optimizer=moving, warmup_steps=1)
    saving = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        train(tmp_path, Plasticity(FixedPlasticity(0.1)), Interrupt(3), saving, module=module)
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert checkpoints
    for path in checkpoints:
        for group in torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]:
            assert group["lr"] > 0.005
    optimizer = module.trainer.optimizers[0]
    assert all(group["lr"] > 0.005 for group in optimizer.param_groups)
    assert not optimizer._optimizer_step_pre_hooks


def test_after_training_nothing_of_it_is_left_in_the_optimizer(tmp_path: Path) -> None:
    _, trainer = train(tmp_path, Plasticity(quick()))
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


# ---- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", [moving, lambda groups: MuonAdamW(groups, lr=0.01)], ids=["adamw", "muon"]
)
def test_a_resumed_run_goes_on_bit_for_bit(optimizer: Any, tmp_path: Path) -> None:
    def run(folder: str, batches: list[Batch], steps: int, *callbacks: Callback, **settings: Any) -> Any:
        rates, plasticity = Rates(), Plasticity(quick(), {"gate": quick()})
        module, _ = train(
            tmp_path / folder,
            plasticity,
            rates,
            *callbacks,
            module=make_module(optimizer=optimizer),
            batches=batches,
            max_epochs=None,
            max_steps=steps,
            **settings,
        )
        return module, rates.taken

    whole, taken = run("whole", BATCHES, 12)
    saving = ModelCheckpoint(tmp_path, filename="six", every_n_train_steps=6)
    _, first = run("first", BATCHES[:6], 6, saving)
    rest, second = run("rest", BATCHES[6:], 12, checkpoint=tmp_path / "six.ckpt")
    assert first + second == taken
    assert len({rates[0] for rates in taken}) > 6
    assert torch.equal(weights(whole), weights(rest))
    state = torch.load(tmp_path / "six.ckpt", weights_only=True)["callbacks"]["Plasticity"]
    assert set(state) == {"default", "gate"}


# ---- on an accelerator ---------------------------------------------------------------------------


class Wave(PlasticityPolicy):
    """A factor that is a tensor and differs in every step."""

    def __init__(self) -> None:
        super().__init__(0.1, 1.0)

    def forward(self, vitals: Vitals) -> torch.Tensor:
        return 0.55 + 0.45 * torch.sin(vitals.main_loss * 100)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["fused AdamW", "NeuronAdamW", "MuonAdamW"])
def test_on_cuda_no_step_waits_for_the_device(name: str, tmp_path: Path) -> None:
    class Watched(Plasticity):
        def on_before_optimizer_step(self, *args: Any) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                super().on_before_optimizer_step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    results = []
    for kind in (Watched, Plasticity):
        module = make_module(optimizer=lambda groups: OPTIMIZERS[name](groups, 0.01))
        train(tmp_path, kind(Wave()), module=module, accelerator="cuda", devices=1)
        results.append(weights(module).cpu())
    assert torch.equal(*results)
