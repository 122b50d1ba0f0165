"""Parameter groups, the joint optimizer against its two parts, and the schedule."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from toy import ByteText, Patches

from onn_lightning import OmniModule
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import MuonAdamW, default_optimizer, parameter_groups


def make_module(**options) -> OmniModule:
    torch.manual_seed(0)
    trunk = TrunkConfig(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16)
    return OmniModule(trunk, [ByteText(embedding_size=6), Patches()], **options)


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_every_parameter_is_in_exactly_one_group() -> None:
    module = make_module()
    grouped = [id(parameter) for group in parameter_groups(module) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters())


def test_groups_hold_what_their_names_say() -> None:
    module = make_module()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = {group["name"]: [names[id(p)] for p in group["params"]] for group in parameter_groups(module)}
    assert list(groups) == ["matrix", "sigma", "gate", "embedding", "vector"]
    assert groups["embedding"] == ["embedders.text.character.weight"]  # the tied head adds none
    assert len(groups["sigma"]) == 4 and all(name.endswith("sigma_weight") for name in groups["sigma"])
    assert len(groups["gate"]) == 4 and all(name.endswith("gate_param") for name in groups["gate"])
    assert all(name.endswith(("mu_weight", "projection.weight")) for name in groups["matrix"])
    assert {"positions.gain", "heads.text.logit_scale"} < set(groups["vector"])


def test_only_matrices_decay() -> None:
    optimizer = default_optimizer(parameter_groups(make_module()))
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"matrix": 0.1, "sigma": 0.0, "gate": 0.0, "embedding": 0.0, "vector": 0.0}


@pytest.mark.parametrize("embedding_lr", [None, 0.03])
def test_the_joint_optimizer_does_what_muon_and_adamw_do_apart(embedding_lr: float | None) -> None:
    joint, apart = make_module(), make_module()
    groups = parameter_groups(joint)
    optimizer = MuonAdamW(groups, lr=0.01, embedding_lr=embedding_lr, momentum=0.9, weight_decay=0.05)
    matrices, *others = parameter_groups(apart)
    for group in others:
        if embedding_lr is not None and group["name"] == "embedding":
            group["lr"] = embedding_lr
    muon = torch.optim.Muon(
        [matrices],
        lr=0.01,
        momentum=0.9,
        weight_decay=0.05,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), fused=True)
    for step in range(3):
        give_gradients(joint, step)
        give_gradients(apart, step)
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, measured), expected in zip(joint.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(measured, expected), name


def test_the_joint_optimizer_resumes_from_its_state_with_a_scheduler() -> None:
    """Three steps, saved and loaded in the middle, equal three steps in one go."""

    def train(module: nn.Module, optimizer: MuonAdamW, scheduler: LambdaLR, steps: range) -> None:
        for step in steps:
            give_gradients(module, step)
            optimizer.step()
            scheduler.step()

    def halving(module: nn.Module) -> tuple[MuonAdamW, LambdaLR]:
        optimizer = MuonAdamW(parameter_groups(module), lr=0.1, embedding_lr=0.2)
        return optimizer, LambdaLR(optimizer, lambda step: 0.5**step)

    through, broken = make_module(), make_module()
    train(through, *halving(through), range(3))

    optimizer, scheduler = halving(broken)
    train(broken, optimizer, scheduler, range(2))
    saved = copy.deepcopy((broken.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    resumed = make_module()
    optimizer, scheduler = halving(resumed)
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025, 0.025, 0.05, 0.025]
    train(resumed, optimizer, scheduler, range(2, 3))
    for (name, measured), expected in zip(resumed.named_parameters(), through.parameters(), strict=True):
        assert torch.equal(measured, expected), name


def test_the_scheduler_moves_both_parts() -> None:
    module = make_module()
    before = copy.deepcopy(module.state_dict())
    optimizer = MuonAdamW(parameter_groups(module), lr=0.1)
    LambdaLR(optimizer, lambda _: 0.0)
    give_gradients(module, 0)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_joint_optimizer_reports_the_loss_of_its_closure() -> None:
    module = make_module()
    optimizer = MuonAdamW(parameter_groups(module))

    def closure() -> torch.Tensor:
        loss = sum(parameter.square().sum() for parameter in module.parameters())
        optimizer.zero_grad()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first is not None and optimizer.step(closure) < first


@pytest.mark.parametrize("kept", ["matrix", "vector"])
def test_the_joint_optimizer_works_with_one_part_only(kept: str) -> None:
    module = make_module()
    give_gradients(module, 0)
    groups = [group for group in parameter_groups(module) if group["name"] == kept]
    before = groups[0]["params"][0].detach().clone()
    MuonAdamW(groups).step()
    assert not torch.equal(groups[0]["params"][0], before)


def configured_parts(module: OmniModule) -> tuple[torch.optim.Optimizer, LambdaLR]:
    configured = module.configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    return configured["optimizer"], configured["lr_scheduler"]["scheduler"]


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_configuring_does_not_ask_for_the_length_of_the_run(warmup_steps: int) -> None:
    """Asking makes Lightning set up the loaders, which before a restore loses the place in the data."""
    module = make_module(warmup_steps=warmup_steps)
    module.trainer = Trainer(max_steps=-1, logger=False, enable_checkpointing=False, accelerator="cpu")
    asked = property(lambda trainer: pytest.fail("the trainer was asked for its length"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "estimated_stepping_batches", asked)
        configured_parts(module)


def learning_rates(total: float, steps: int, **options) -> list[float]:
    """Learning rates of the first steps of a run of `total` steps, as fractions of the peak."""
    module = make_module(optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0), **options)
    trainer = Trainer(max_steps=-1, logger=False, enable_checkpointing=False, accelerator="cpu")
    module.trainer = trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "estimated_stepping_batches", total)
        optimizer, scheduler = configured_parts(module)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_cosine() -> None:
    rates = learning_rates(20, 20, warmup_steps=4, min_lr_ratio=0.1)
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates[4:] == pytest.approx(cosine)


def test_the_learning_rate_stays_at_its_floor_after_the_end() -> None:
    assert learning_rates(5, 9, warmup_steps=1, min_lr_ratio=0.2)[5:] == pytest.approx([0.2] * 4)


def test_a_run_without_an_end_keeps_the_peak_after_warm_up() -> None:
    assert learning_rates(math.inf, 6, warmup_steps=2) == pytest.approx([0.5, 1, 1, 1, 1, 1])


def test_a_run_without_warm_up_begins_at_the_peak() -> None:
    assert learning_rates(10, 1, warmup_steps=0) == [1.0]
