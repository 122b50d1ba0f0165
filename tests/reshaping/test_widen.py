"""A wider feed-forward: the same function, gradients that belong to it, and new neurons that come to use."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_case import (
    MODALITIES,
    as_type,
    loss_of,
    made_from,
    optimizer_from,
    outputs,
    some_batch,
    step,
    trained_case,
    trunks,
)

from onn_lightning.nn import SBLForm, TrunkConfig
from onn_lightning.reshaping import reshape_checkpoint, widen
from onn_lightning.reshaping.origins import trace

BATCH = as_type(some_batch(), torch.float64)


@settings(max_examples=12)
@given(trunk=trunks(), data=st.data())
def test_a_wider_network_computes_the_same(trunk: TrunkConfig, data: st.DataObject) -> None:
    blocks = data.draw(st.sets(st.integers(0, trunk.num_layers - 1), min_size=1))
    sizes = {block: trunk.feed_forward_sizes[block] + data.draw(st.integers(1, 30)) for block in blocks}
    case = trained_case(trunk)
    plan = widen(trunk, sizes)
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    expected = outputs(case.module, BATCH)
    grown = outputs(made_from(new, plan.trunk), BATCH)
    torch.testing.assert_close(grown, expected, rtol=0, atol=1e-12)

    # rounding of the new weights to float32, and of every product after it
    coarse = outputs(made_from(new, plan.trunk, dtype=torch.float32), some_batch())
    torch.testing.assert_close(coarse, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_same_holds_where_hardly_any_neuron_fires(normalized: bool) -> None:
    trunk = TrunkConfig(16, 2, 4, intermediate_size=24, sbl=SBLForm(normalized=normalized))
    case = trained_case(trunk)
    with torch.no_grad():
        for block in case.module.trunk.blocks:
            block.moie.up.mu_weight.mul_(1e-3)  # quiet: the norm's epsilon weighs as much as they do
            block.moie.up.gate_param.fill_(-0.01)
    checkpoint = case.checkpoint | {"state_dict": case.module.state_dict()}
    plan = widen(trunk, {0: 96, 1: 200})
    grown = made_from(reshape_checkpoint(checkpoint, plan, MODALITIES), plan.trunk)
    torch.testing.assert_close(outputs(grown, BATCH), outputs(case.module, BATCH), rtol=0, atol=1e-12)


@settings(max_examples=6)
@given(trunk=trunks())
def test_gradients_of_the_wider_network_are_the_old_ones_rescaled(trunk: TrunkConfig) -> None:
    case = trained_case(trunk)
    plan = widen(trunk, {0: trunk.feed_forward_sizes[0] + 7})
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    grown = made_from(new, plan.trunk)
    for module in (case.module, grown):
        module.zero_grad()
        loss_of(module, BATCH).backward()
    before, origins_by_name = dict(case.module.named_parameters()), trace(trunk, MODALITIES, plan).origins
    for name, parameter in grown.named_parameters():
        origin = origins_by_name[name]
        assert origin.source is not None
        old = before[origin.source]
        expected = old.grad if origin.rescaling is None else old.grad * origin.rescaling.gradients(old)
        gradient = parameter.grad
        for dimension, origins in enumerate((origin.rows, origin.columns)):
            if origins is not None:
                gradient = gradient.index_select(dimension, (origins >= 0).nonzero().squeeze(1))
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("gate", [-1.0, 0.0])
@pytest.mark.parametrize("normalized", [True, False])
def test_new_neurons_come_to_use_within_a_few_dozen_steps(
    normalized: bool, gate: float, optimizer: str
) -> None:
    trunk = TrunkConfig(16, 2, 4, intermediate_size=8, sbl=SBLForm(normalized=normalized, gate=gate))
    case = trained_case(trunk, optimizer, steps=20)
    plan = widen(trunk, {0: 24, 1: 24})
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    grown = made_from(new, plan.trunk)
    made = optimizer_from(new, grown, optimizer)
    losses = [step(grown, made, BATCH) for _ in range(40)]
    assert losses[0] == pytest.approx(loss_of(case.module, BATCH).item(), abs=1e-10)
    trained = loss_of(grown, BATCH).item()
    assert trained < 0.9 * losses[0]
    for block in grown.trunk.blocks:
        directions = torch.nn.functional.normalize(block.moie.up.mu_weight[8:], dim=1)
        alike = directions @ directions.T - torch.eye(16)
        assert (directions.norm(dim=1) > 0).all() and alike.max() < 0.999
    with torch.no_grad():  # without the new neurons the loss is higher: they do something
        for block in grown.trunk.blocks:
            block.moie.up.mu_weight[8:] = 0
            block.moie.up.mu_bias[8:] = 0
    assert loss_of(grown, BATCH).item() > trained


def test_new_neurons_differ_by_the_generator_and_are_repeatable_without() -> None:
    trunk = TrunkConfig(16, 1, 4, intermediate_size=8)
    case = trained_case(trunk)
    plan = widen(trunk, {0: 16})
    name = "trunk.blocks.0.moie.down.mu_weight"

    def columns(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        new: torch.Tensor = reshape_checkpoint(case.checkpoint, plan, MODALITIES, generator)["state_dict"][
            name
        ]
        return new[:, 8:]

    state = torch.get_rng_state()
    assert torch.equal(columns(None), columns(None)) and torch.equal(columns(1), columns(1))
    assert not torch.equal(columns(1), columns(2))
    assert torch.equal(torch.get_rng_state(), state)
    spread = columns(1).std().item()
    assert spread == pytest.approx((2 * 16) ** -0.5, rel=0.2)  # as a new network of this size begins


def test_nothing_of_the_old_checkpoint_is_changed_in_place() -> None:
    trunk = TrunkConfig(16, 2, 4, intermediate_size=8, sbl=SBLForm(normalized=False))
    case = trained_case(trunk)
    before = {name: tensor.clone() for name, tensor in case.checkpoint["state_dict"].items()}
    description = dict(case.checkpoint["onn_lightning"])
    reshape_checkpoint(case.checkpoint, widen(trunk, {0: 16}), MODALITIES)
    assert all(torch.equal(case.checkpoint["state_dict"][name], tensor) for name, tensor in before.items())
    assert case.checkpoint["onn_lightning"] == description


def test_the_description_tells_the_new_shape_and_what_was_done() -> None:
    trunk = TrunkConfig(16, 2, 4, intermediate_size=8)
    case = trained_case(trunk)
    plan = widen(trunk, {1: 16})
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    described = new["onn_lightning"]
    assert described["trunk"] == dataclasses.asdict(plan.trunk)
    assert described["trunk"]["intermediate_size"] == [8, 16]
    (entry,) = described["history"]
    assert entry["step"] == 3 and entry["what"] == "feed-forward of block 1 from 8 to 16 neurons"
    assert entry["trunk"] == dataclasses.asdict(trunk)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "nothing to widen"),
        ({2: 16}, "cannot widen block 2: the trunk has 2 blocks, numbered 0..1"),
        ({0: 8}, "cannot widen block 0 from 8 to 8 neurons"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(sizes: dict[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        widen(TrunkConfig(16, 2, 4, intermediate_size=8), sizes)
