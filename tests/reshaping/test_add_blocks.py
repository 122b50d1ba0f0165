"""New blocks: they add exactly nothing, and begin to learn."""

from __future__ import annotations

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
from onn_lightning.reshaping import add_blocks, reshape_checkpoint

BATCH = as_type(some_batch(), torch.float64)


@settings(max_examples=8)
@given(trunk=trunks(), count=st.integers(1, 2), data=st.data())
def test_a_deeper_network_computes_exactly_the_same(
    trunk: TrunkConfig, count: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, trunk.num_layers))
    case = trained_case(trunk)
    plan = add_blocks(trunk, count, at)
    grown = made_from(reshape_checkpoint(case.checkpoint, plan, MODALITIES), plan.trunk)
    assert torch.equal(outputs(grown, BATCH), outputs(case.module, BATCH))

    old = [block.state_dict() for block in case.module.trunk.blocks]
    for number, block in enumerate(grown.trunk.blocks):
        if number < at or number >= at + count:
            before = old[number if number < at else number - count]
            assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("gate", [-1.0, 0.0])
@pytest.mark.parametrize("normalized", [True, False])
def test_gradients_flow_into_a_new_block_after_its_first_step(
    normalized: bool, gate: float, optimizer: str
) -> None:
    trunk = TrunkConfig(16, 2, 4, intermediate_size=8, sbl=SBLForm(normalized=normalized, gate=gate))
    case = trained_case(trunk, optimizer, steps=10)
    plan = add_blocks(trunk, 1, 1)
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    grown = made_from(new, plan.trunk)
    made = optimizer_from(new, grown, optimizer)
    block = grown.trunk.blocks[1]
    losses = [step(grown, made, BATCH)]
    assert block.attention.output.mu_weight.grad.any() and block.moie.down.mu_weight.grad.any()
    assert not block.moie.up.mu_weight.grad.any()  # nothing of it arrives yet
    losses.append(step(grown, made, BATCH))
    for layer in (block.attention.qkv, block.attention.output, block.moie.up, block.moie.down):
        assert layer.mu_weight.grad.any() and layer.sigma_weight.grad.any() and layer.gate_param.grad.any()

    losses += [step(grown, made, BATCH) for _ in range(30)]
    trained = loss_of(grown, BATCH).item()
    assert losses[0] == loss_of(case.module, BATCH).item() and trained < 0.9 * losses[0]
    with torch.no_grad():  # without the new block the loss is higher: it does something
        for layer in (block.attention.output, block.moie.down):
            layer.mu_weight.zero_()
            layer.mu_bias.zero_()
    assert loss_of(grown, BATCH).item() > trained


def test_new_blocks_take_the_size_of_the_block_that_they_stand_before() -> None:
    trunk = TrunkConfig(16, 3, 4, intermediate_size=[8, 12, 20])
    assert add_blocks(trunk, 2, 1).trunk.feed_forward_sizes == (8, 12, 12, 12, 20)
    assert add_blocks(trunk, 1, 3).trunk.feed_forward_sizes == (8, 12, 20, 20)
    assert add_blocks(trunk, 1, 0).blocks == (-1, 0, 1, 2)


@pytest.mark.parametrize(
    ("count", "at", "message"),
    [(0, 0, "cannot add 0 blocks"), (1, 3, "has 2 blocks, so places are 0..2"), (1, -1, "places are 0..2")],
)
def test_a_place_that_is_not_there_is_refused(count: int, at: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_blocks(TrunkConfig(16, 2, 4), count, at)
