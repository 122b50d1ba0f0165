"""`LossReweighting` in real runs: what it writes, when that holds, and resuming it bit for bit."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import PARTS, batch_of, make_module, moving, watch
from toy import ByteText, Patches

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import LossReweighting, PIMonitor
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import NeuronAdamW
from onn_lightning.regulation.modality_weights import FixedModalityWeights, IntegrityBalance
from onn_lightning.regulation.weights import ActivationTarget, FixedWeight, IntegrityWeight, LossSigmoidWeight

BATCHES = PARTS * 3


class Course(Callback):
    """Keeps the weights and the losses of every step: those in force in it."""

    def __init__(self) -> None:
        self.weights: list[dict[str, list[float]]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        named = ("w_gate", "w_kl", "loss_weights")
        self.weights.append({name: pl_module.get_buffer(name).flatten().tolist() for name in named})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def reweighting(**options: Any) -> LossReweighting:
    return LossReweighting(
        w_gate=ActivationTarget(rate=0.2, quality_margin=0.01),
        w_kl=IntegrityWeight(0.001, 0.1),
        loss_weights=IntegrityBalance(half_life=2.0),
        **options,
    )


def trained(
    folder: Path, callback: LossReweighting, batches: list[Batch] = BATCHES, **options: Any
) -> tuple[OmniModule, Course]:
    module = options.pop("module", None) or make_module(optimizer=moving)
    course = Course()
    callbacks = [callback, course, *options.pop("callbacks", [])]
    watch(batches, folder, module, callbacks=callbacks, **options)
    return module, course


def test_weights_of_a_step_are_written_for_the_next(tmp_path: Path) -> None:
    """The published form, followed by hand from the losses; the configured weights hold in the first step."""
    module, keep = make_module(optimizer=moving, w_gate=0.25), Course()
    callback = LossReweighting(w_gate=LossSigmoidWeight(), w_kl=FixedWeight(0.5), minimum_firing=0.0)
    listener, _ = watch(BATCHES, tmp_path, module, callbacks=[callback, keep])
    losses = [float(vitals.main_loss) for vitals in listener.vitals]
    written = [1 - 1 / (1 + math.exp(-loss)) for loss in losses]
    in_force = [weights["w_gate"][0] for weights in keep.weights]
    assert in_force == pytest.approx([0.25, *written[:-1]], rel=1e-4)
    assert float(module.w_gate) == pytest.approx(written[-1], rel=1e-4)
    assert [weights["w_kl"][0] for weights in keep.weights] == pytest.approx([0.01, *[0.5] * 11])
    assert keep.weights[-1]["loss_weights"] == [1.0, 1.0]  # without a policy: as configured


def test_the_buffers_stay_the_same_memory(tmp_path: Path) -> None:
    module = make_module(optimizer=moving)
    places = [module.get_buffer(name).data_ptr() for name in ("w_gate", "w_kl", "loss_weights")]
    trained(tmp_path, reweighting(), module=module)
    assert places == [module.get_buffer(name).data_ptr() for name in ("w_gate", "w_kl", "loss_weights")]


def test_modalities_share_their_configured_weight_by_their_integrity(tmp_path: Path) -> None:
    module = make_module(optimizer=moving, loss_weights={"text": 0.5, "patch": 2.0})
    _, course = trained(tmp_path, reweighting(), module=module)
    for weights in course.weights[1:]:
        text, patch = weights["loss_weights"][0] / 0.5, weights["loss_weights"][1] / 2.0
        assert text > 1 > patch  # bytes at 5 nats are predicted worse than patches
        assert (text + patch) / 2 == pytest.approx(1.0, abs=1e-5)


def test_an_absent_modality_keeps_its_weight(tmp_path: Path) -> None:
    speech = batch_of([[("text", "hello")]])
    _, course = trained(tmp_path, reweighting(), [PARTS[0], *[speech] * 6, PARTS[1], PARTS[2]])
    after_first = course.weights[1]["loss_weights"]
    assert all(weights["loss_weights"] == pytest.approx(after_first) for weights in course.weights[2:8])
    assert course.weights[8]["loss_weights"] != pytest.approx(after_first, rel=1e-4)


@pytest.mark.parametrize("stop", [4, 6, 11])
def test_a_resumed_run_has_the_same_weights_and_losses_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole, unbroken = trained(tmp_path / "whole", reweighting())
    assert len({weights["w_gate"][0] for weights in unbroken.weights}) == len(BATCHES)
    saving = ModelCheckpoint(tmp_path, filename="stop", every_n_train_steps=stop)
    options = {"callbacks": [saving], "enable_checkpointing": True, "max_epochs": None, "max_steps": stop}
    _, first = trained(tmp_path / "first", reweighting(), BATCHES[:stop], **options)
    rest, second = trained(
        tmp_path / "rest",
        reweighting(),
        BATCHES[stop:],
        checkpoint=tmp_path / "stop.ckpt",
        max_epochs=None,
        max_steps=len(BATCHES),
    )
    assert first.weights + second.weights == unbroken.weights
    assert first.losses + second.losses == unbroken.losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_a_run_resumed_under_another_policy_begins_that_policy_anew_and_says_so(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="four", every_n_train_steps=4)
    options = {"callbacks": [saving], "enable_checkpointing": True, "max_epochs": None, "max_steps": 4}
    trained(tmp_path, LossReweighting(w_gate=ActivationTarget()), PARTS, **options)
    options = {"checkpoint": tmp_path / "four.ckpt", "max_epochs": None, "max_steps": 8}
    with pytest.warns(UserWarning, match=r"w_gate is ActivationTarget, the config's IntegrityWeight"):
        module, _ = trained(tmp_path, LossReweighting(w_gate=IntegrityWeight(0.0, 0.02)), PARTS, **options)
    assert 0 < float(module.w_gate) < 0.02


def test_broken_steps_leave_finite_weights(tmp_path: Path) -> None:
    broken = batch_of([[("patch", [math.nan] * 6), ("text", "ab")]])
    module, course = trained(tmp_path, reweighting(), [PARTS[0], broken, broken], module=make_module())
    before, after = course.weights[1], {name: module.get_buffer(name) for name in course.weights[1]}
    assert after["w_kl"].flatten().tolist() == before["w_kl"]
    assert after["loss_weights"].tolist() == before["loss_weights"]
    assert float(after["w_gate"]) == 0  # what cannot be seen is not pressed


def test_it_works_under_accumulation_once_a_step(tmp_path: Path) -> None:
    policy = ActivationTarget(target=0.3, rate=1.0, start=0.001, half_life=0.01, high=1.0)
    callback = LossReweighting(w_gate=policy, minimum_loss=0.0, minimum_firing=0.0)
    listener, _ = watch(BATCHES, tmp_path, callbacks=[callback], accumulate_grad_batches=4)
    grown = 0.001 * math.exp(sum(float(vitals.activation) - 0.3 for vitals in listener.vitals))
    assert len(listener.vitals) == 3
    assert float(callback.policies["w_gate"].get_buffer("log_weight").exp()) == pytest.approx(grown, rel=1e-4)


def test_the_monitor_must_stand_before_it(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[reweighting(), PIMonitor()]
    )
    with pytest.raises(MisconfigurationException, match="before LossReweighting"):
        trainer.fit(make_module(), PARTS)


def test_a_weight_for_a_modality_without_a_loss_is_refused(tmp_path: Path) -> None:
    callback = LossReweighting(loss_weights=FixedModalityWeights({"sound": 2.0}))
    with pytest.raises(MisconfigurationException, match=r"\['sound'\].*\['patch', 'text'\]"):
        watch(PARTS, tmp_path, callbacks=[callback])


def test_policies_are_chosen_by_class_path_in_a_config(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("callback", type=Callback)
    prefix = "onn_lightning.regulation"
    policies = {
        "w_gate": {"class_path": f"{prefix}.weights.ActivationTarget", "init_args": {"target": 0.25}},
        "loss_weights": {"class_path": f"{prefix}.modality_weights.FixedModalityWeights"},
    }
    path = "onn_lightning.callbacks.LossReweighting"
    config = parser.parse_object({"callback": {"class_path": path, "init_args": policies}})
    callback = parser.instantiate_classes(config).callback
    assert isinstance(callback.policies["w_gate"], ActivationTarget)
    assert callback.policies["w_gate"].target == 0.25
    assert isinstance(callback.policies["loss_weights"], FixedModalityWeights)


def test_activation_is_brought_to_the_target_and_kept_there(tmp_path: Path) -> None:
    """On text that cannot be learned by heart; the network fires for 85 % of its tokens at first."""
    letters = random.Random(0)
    texts = ["".join(letters.choices("abcd", k=14)) for _ in range(500)]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    batches = [batch_of(*([[("text", text)]] for text in pair)) for pair in pairs]
    torch.manual_seed(0)
    module = OmniModule(
        TrunkConfig(16, 1, 2, intermediate_size=24),
        [ByteText(), Patches()],
        optimizer=lambda groups: NeuronAdamW(groups, lr=0.02),
        warmup_steps=1,
        min_lr_ratio=1.0,
    )
    policy = ActivationTarget(target=0.4, rate=0.3, high=1.0)  # quick
    listener, _ = watch(batches, tmp_path, module, callbacks=[LossReweighting(w_gate=policy)])
    activation = [float(vitals.activation) for vitals in listener.vitals]
    assert activation[0] > 0.8
    assert sum(activation[-50:]) / 50 == pytest.approx(0.4, abs=0.08)
    assert min(activation) > 0.3  # it does not overshoot
