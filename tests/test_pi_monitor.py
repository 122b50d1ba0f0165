"""`PIMonitor` on real runs: the same figures however a step is cut, nothing lost, nothing read early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import (
    PARTS,
    TRUNK,
    WHOLE,
    ScaledFloat32,
    assert_same_figures,
    batch_of,
    make_module,
    moving,
    tensors,
    watch,
)
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from toy import Patches, pack

from onn_lightning import OmniModule
from onn_lightning.callbacks import PIMonitor

# ---- the same figures ----------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "scale"), [(4, None), (4, 4096.0), (1, 4096.0)])
def test_micro_batches_and_a_loss_scale_change_no_figure(
    parts: int, scale: float | None, tmp_path: Path
) -> None:
    whole, _ = watch([WHOLE], tmp_path)
    plugins = [] if scale is None else [ScaledFloat32(scale, growth_interval=2)]
    batches = PARTS if parts == 4 else [WHOLE]
    cut, _ = watch(batches, tmp_path, plugins=plugins, accumulate_grad_batches=parts)
    assert len(cut.vitals) == 1
    assert_same_figures(cut.vitals[0], whole.vitals[0])
    assert cut.logged[-1] == pytest.approx(whole.logged[0], rel=1e-4)
    exact = ("neuron_activation", "activation", "modality_targets", "gate")
    if scale is not None and parts == 1:  # a power of two: no rounding either
        exact = tuple(tensors(whole.vitals[0]))
    for name in exact:
        assert torch.equal(tensors(cut.vitals[0])[name], tensors(whole.vitals[0])[name]), name


def test_the_smaller_last_step_of_an_epoch_has_the_figures_of_its_own_batches(tmp_path: Path) -> None:
    """The trainer divides its gradients by the full number of micro-batches; its figures are not smaller."""
    cut, _ = watch([*PARTS, WHOLE], tmp_path, accumulate_grad_batches=4)
    whole, _ = watch([WHOLE], tmp_path)
    assert len(cut.vitals) == 2
    for vitals in cut.vitals:
        assert_same_figures(vitals, whole.vitals[0])


def test_validation_between_micro_batches_changes_no_figure(tmp_path: Path) -> None:
    through, _ = watch(PARTS, tmp_path, accumulate_grad_batches=4)
    broken, monitor = watch(
        PARTS,
        tmp_path,
        accumulate_grad_batches=4,
        val_check_interval=1,
        validation=DataLoader([WHOLE], batch_size=None),
    )
    for name, value in tensors(through.vitals[0]).items():
        assert torch.equal(tensors(broken.vitals[0])[name], value), name
    assert monitor.seen_tokens_per_neuron is not None
    assert (monitor.seen_tokens_per_neuron == WHOLE.modality_ids.numel()).all()


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"precision": "bf16-mixed"}, 0.05),
        ({"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}, 0.01),
    ],
    ids=["bf16-mixed", "16-mixed"],
)
def test_figures_in_mixed_precision_are_those_of_float32(
    settings: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    full, _ = watch([WHOLE], tmp_path)
    other, _ = watch([WHOLE], tmp_path, **settings)
    expected = tensors(full.vitals[0])
    for name, value in tensors(other.vitals[0]).items():
        assert value.dtype == torch.float32, name
        if name not in (
            "neuron_surprise",
            "neuron_activation",
        ):  # a neuron at its threshold may fall either side
            torch.testing.assert_close(
                value.to(expected[name]), expected[name], rtol=tolerance, atol=tolerance, msg=name
            )


# ---- what is absent, broken or dead --------------------------------------------------------------


def test_a_modality_without_targets_is_absent_from_the_figures(tmp_path: Path) -> None:
    keep, _ = watch([batch_of([[("text", "hello")]])], tmp_path)
    vitals = keep.vitals[0]
    patch = vitals.modalities.index("patch")
    assert vitals.modality_targets[patch] == 0 and vitals.modality_pi[patch] == 1
    assert vitals.modality_loss[patch] == 0
    assert vitals.main_loss == vitals.modality_loss[1 - patch]


def test_heads_without_a_distribution_leave_tau_at_zero_and_integrity_finite(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OmniModule(TRUNK, [Patches()], optimizer=moving)
    batch = pack([[[("patch", [0.1, -0.4, 0.3, 1.0, 0.2, -0.8])]]], [Patches()])
    keep, _ = watch([batch], tmp_path, module)
    vitals = keep.vitals[0]
    assert vitals.tau == 0 and 0 < vitals.pi < 1
    torch.testing.assert_close(vitals.pi, torch.exp(-vitals.main_loss - vitals.surprise))


def test_a_batch_of_padding_alone_is_harmless(tmp_path: Path) -> None:
    keep, _ = watch([batch_of([])], tmp_path)
    assert all(value.isfinite().all() for value in tensors(keep.vitals[0]).values())
    assert keep.vitals[0].pi == 1


def test_a_step_with_broken_figures_shows_them_and_leaves_average_and_counts(tmp_path: Path) -> None:
    """The scaler skips that step, so that the network survives it."""
    broken = batch_of([[("patch", [math.nan] * 6), ("text", "ab")]])
    runs = [
        watch(
            batches,
            tmp_path / str(n),
            make_module(optimizer=moving),
            plugins=[ScaledFloat32(2.0, growth_interval=2)],
        )
        for n, batches in enumerate([[PARTS[0], broken, PARTS[1]], [PARTS[0], PARTS[1]]])
    ]
    (hit, hit_monitor), (spared, spared_monitor) = runs
    assert hit.vitals[1].main_loss.isnan() and hit.vitals[1].surprise.isnan()
    assert torch.equal(hit.vitals[1].pi_ema, hit.vitals[0].pi_ema)
    assert_same_figures(hit.vitals[2], spared.vitals[1])
    for name in ("fired_tokens_per_neuron", "seen_tokens_per_neuron"):
        assert torch.equal(getattr(hit_monitor, name), getattr(spared_monitor, name)), name
    assert [step["train/broken_steps"] for step in hit.logged] == [0, 1, 0]


def test_a_step_that_the_scaler_skips_for_an_overflow_does_not_count(tmp_path: Path) -> None:
    keep, monitor = watch([WHOLE], tmp_path, plugins=[ScaledFloat32(2.0**127, growth_interval=2)])
    assert not keep.vitals[0].finite and keep.vitals[0].main_loss.isfinite()
    assert monitor.seen_tokens_per_neuron is not None and (monitor.seen_tokens_per_neuron == 0).all()


def test_a_neuron_that_never_fires_has_an_activation_of_exactly_zero(tmp_path: Path) -> None:
    module = make_module()
    part = module.trunk.neuron_slices["1.moie.up"]
    with torch.no_grad():
        module.trunk.blocks[1].moie.up.gate_param[3] = 1e6
    keep, monitor = watch(PARTS, tmp_path, module, accumulate_grad_batches=2)
    dead = part.start + 3
    for vitals in keep.vitals:
        assert vitals.neuron_activation[dead] == 0 and vitals.activation > 0.1
    assert monitor.lifetime_activation is not None and monitor.lifetime_activation[dead] == 0


# ---- over time -----------------------------------------------------------------------------------


def test_lifetime_counts_are_exact_and_their_share_is_the_mean_activation(tmp_path: Path) -> None:
    keep, monitor = watch(PARTS, tmp_path)
    fired, seen = monitor.fired_tokens_per_neuron, monitor.seen_tokens_per_neuron
    assert fired is not None and seen is not None and monitor.lifetime_activation is not None
    assert fired.dtype == seen.dtype == torch.float64 and torch.equal(fired, fired.round())
    assert (seen == sum(batch.modality_ids.numel() for batch in PARTS)).all()
    mean = torch.stack([vitals.neuron_activation for vitals in keep.vitals]).double().mean(dim=0)
    torch.testing.assert_close(monitor.lifetime_activation, mean, rtol=1e-6, atol=1e-8)


def test_the_moving_average_is_corrected_for_its_youth(tmp_path: Path) -> None:
    keep, _ = watch(PARTS, tmp_path, make_module(optimizer=moving), PIMonitor(ema=0.75))
    pis = [float(vitals.pi) for vitals in keep.vitals]
    for step, vitals in enumerate(keep.vitals):
        weights = [0.75 ** (step - age) for age in range(step + 1)]
        expected = sum(w * pi for w, pi in zip(weights, pis, strict=False)) / sum(weights)
        assert float(vitals.pi_ema) == pytest.approx(expected, rel=1e-5)


def test_a_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema is 1\.0, it must be between 0 and 1"):
        PIMonitor(ema=1.0)


def test_a_resumed_run_has_the_figures_of_an_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    options = {"max_steps": 6, "log_every_n_steps": 4}
    batches = [*PARTS, *PARTS[:2]]
    through, through_monitor = watch(batches, tmp_path / "a", make_module(optimizer=moving), **options)
    save = ModelCheckpoint(tmp_path / "b", save_top_k=-1, every_n_train_steps=2)
    watch(
        batches,
        tmp_path / "b",
        make_module(optimizer=moving),
        callbacks=[save],
        **options | {"enable_checkpointing": True},
    )
    halfway = next((tmp_path / "b").glob("*step=2.ckpt"))
    ahead = [*batches[2:], *batches[:2]]  # Lightning counts the two before the break as part of the epoch
    rest, monitor = watch(ahead, tmp_path / "c", make_module(optimizer=moving), checkpoint=halfway, **options)
    assert [vitals.step for vitals in rest.vitals] == [3, 4, 5, 6]
    for resumed, unbroken in zip(rest.vitals, through.vitals[2:], strict=True):
        for name, value in tensors(unbroken).items():
            assert torch.equal(tensors(resumed)[name], value), name
    assert rest.logged[1] == through.logged[3]  # the means reach back to before the break
    for name, value in through_monitor.state_dict().items():
        assert torch.equal(torch.as_tensor(monitor.state_dict()[name]), torch.as_tensor(value)), name
    state = torch.load(halfway, weights_only=True)["callbacks"]["PIMonitor"]
    assert state["fired_tokens_per_neuron"].shape == state["seen_tokens_per_neuron"].shape
    assert state["seen_tokens_per_neuron"].dtype == torch.float64


def test_a_monitor_of_another_network_is_refused(tmp_path: Path) -> None:
    _, monitor = watch([PARTS[0]], tmp_path)
    other = OmniModule(type(TRUNK)(16, 1, 2, intermediate_size=24), [Patches()], optimizer=moving)
    with pytest.raises(MisconfigurationException, match=r"counted for \d+ neurons, this network has"):
        watch([pack([[[("patch", [0.1, -0.4, 0.3])]]], [Patches()])], tmp_path, other, monitor)


# ---- logging and cost ----------------------------------------------------------------------------


def test_figures_are_logged_at_the_rhythm_of_the_trainer_and_measured_in_every_step(tmp_path: Path) -> None:
    keep, _ = watch(PARTS, tmp_path, log_every_n_steps=3)
    assert len(keep.vitals) == 4
    assert ["train/pi" in step for step in keep.logged] == [False, False, True, True]
    logged = keep.logged[2]
    assert logged["train/pi"] == float(keep.vitals[2].pi)
    for name in ("main_loss", "tau", "surprise", "pi", "activation"):
        mean = sum(float(getattr(vitals, name)) for vitals in keep.vitals[:3]) / 3
        assert logged[f"train/mean/{name}"] == pytest.approx(mean, rel=1e-5), name


def test_all_figures_are_logged_under_their_names(tmp_path: Path) -> None:
    module = make_module(loss_weights={"text": 0.5}, w_kl=0.25)
    keep, _ = watch([PARTS[0]], tmp_path, module)
    logged, vitals = keep.logged[0], keep.vitals[0]
    layers, slices = dict(module.trunk.sbl_layers()), module.trunk.neuron_slices
    for kind in ("qkv", "output", "up", "down"):
        names = [name for name in layers if name.endswith(kind)]
        assert len(names) == TRUNK.num_layers
        fired = torch.cat([vitals.neuron_activation[slices[name]] for name in names])
        assert logged[f"train/activation/{kind}"] == pytest.approx(float(fired.mean()))
        sigma = torch.cat([softplus(layers[name].sigma_weight.detach()).flatten() for name in names])
        assert logged[f"train/sigma/{kind}"] == pytest.approx(float(sigma.mean()))
        gate = torch.cat([layers[name].gate_param.detach() for name in names])
        assert logged[f"train/gate/{kind}"] == pytest.approx(float(gate.mean()))
    for number, name in enumerate(vitals.modalities):
        assert logged[f"train/pi/{name}"] == float(vitals.modality_pi[number])
        assert logged[f"train/{name}_loss"] == float(vitals.modality_loss[number])
    assert [logged[f"train/pi_block/{block}"] for block in range(2)] == vitals.layer_pi.tolist()
    assert logged["train/loss_weight/text"] == 0.5 and logged["train/loss_weight/patch"] == 1
    assert logged["train/w_gate"] == pytest.approx(0.1) and logged["train/w_kl"] == 0.25
    assert logged["train/pi_ema"] == float(vitals.pi_ema)


class Reads(TorchDispatchMode):
    """Counts what waits for a device: a number read out of a tensor, a shape that depends on one."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_to_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in func.name() for name in self.waiting)
        return func(*args, **kwargs or {})


class Watched(PIMonitor):
    """The monitor with its reads counted, a number a step."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with Reads() as reads:
            super().on_after_backward(trainer, pl_module)
        self.reads.append(reads.count)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        with Reads() as reads:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.reads[-1] += reads.count


def test_no_number_is_read_out_of_a_tensor_between_loggings(tmp_path: Path) -> None:
    monitor = Watched()
    watch(
        PARTS, tmp_path, monitor=monitor, plugins=[ScaledFloat32(2.0, growth_interval=2)], log_every_n_steps=3
    )
    assert monitor.reads[:2] == [0, 0] and monitor.reads[3] == 0
    with Reads() as reads:
        torch.ones(()).item()
    assert reads.count == 1  # the counter counts


# ---- its place -----------------------------------------------------------------------------------


class Regulator(Callback):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        PIMonitor.require_before(trainer, self)


class SavingRegulator(ModelCheckpoint):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        PIMonitor.require_before(trainer, self)
        super().setup(trainer, pl_module, stage)


def fit_with(callbacks: list[Callback], folder: Path) -> None:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        fast_dev_run=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(make_module(), DataLoader([PARTS[0]], batch_size=None))


def test_a_regulator_after_the_monitor_may_act(tmp_path: Path) -> None:
    fit_with([PIMonitor(), Regulator()], tmp_path)


def test_lightning_moves_a_regulator_that_saves_checkpoints_behind_the_monitor(tmp_path: Path) -> None:
    fit_with([SavingRegulator(tmp_path), PIMonitor()], tmp_path)


@pytest.mark.parametrize(
    ("callbacks", "stands"),
    [([Regulator(), PIMonitor()], "stands after it"), ([Regulator()], "is missing")],
)
def test_a_regulator_that_would_see_no_vitals_is_refused(
    callbacks: list[Callback], stands: str, tmp_path: Path
) -> None:
    with pytest.raises(
        MisconfigurationException,
        match=f"Regulator reads .* the PIMonitor {stands}: put .* before Regulator in trainer.callbacks",
    ):
        fit_with(callbacks, tmp_path)
