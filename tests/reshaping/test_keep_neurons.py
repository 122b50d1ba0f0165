"""Fewer neurons: exact where the removed ones never fire, in step with widening."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_case import MODALITIES, as_type, made_from, outputs, some_batch, trained_case, trunks

from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping import keep_neurons, reshape_checkpoint, widen

BATCH = as_type(some_batch(), torch.float64)


@settings(max_examples=8)
@given(trunk=trunks(), data=st.data())
def test_removing_neurons_that_never_fire_changes_nothing(trunk: TrunkConfig, data: st.DataObject) -> None:
    case = trained_case(trunk)
    kept = {}
    for block, size in enumerate(trunk.feed_forward_sizes):
        order = data.draw(st.permutations(range(size)))
        kept[block] = torch.tensor(order[: data.draw(st.integers(1, size))])
        silent = torch.ones(size, dtype=torch.bool).index_fill(0, kept[block], False)
        with torch.no_grad():
            case.module.trunk.blocks[block].moie.up.gate_param[silent] = 1e9
    checkpoint = case.checkpoint | {"state_dict": case.module.state_dict()}
    plan = keep_neurons(trunk, kept)
    smaller = made_from(reshape_checkpoint(checkpoint, plan, MODALITIES), plan.trunk)
    torch.testing.assert_close(outputs(smaller, BATCH), outputs(case.module, BATCH), rtol=0, atol=1e-12)


@settings(max_examples=8)
@given(trunk=trunks())
def test_removing_what_widening_added_gives_the_old_checkpoint_back(trunk: TrunkConfig) -> None:
    case = trained_case(trunk)
    sizes = trunk.feed_forward_sizes
    wide = widen(trunk, {block: 2 * size + 3 for block, size in enumerate(sizes)})
    grown = reshape_checkpoint(case.checkpoint, wide, MODALITIES)
    back = reshape_checkpoint(
        grown, keep_neurons(wide.trunk, {b: torch.arange(size) for b, size in enumerate(sizes)}), MODALITIES
    )
    for name, tensor in case.checkpoint["state_dict"].items():
        torch.testing.assert_close(back["state_dict"][name], tensor, rtol=1e-12, atol=1e-12)
    old_state, state = case.checkpoint["optimizer_states"][0]["state"], back["optimizer_states"][0]["state"]
    for number, entry in old_state.items():
        for key, value in entry.items():
            torch.testing.assert_close(state[number][key], value, rtol=1e-9, atol=1e-14)
    assert len(back["onn_lightning"]["history"]) == 2
    vector = back["callbacks"]["PIMonitor"]["fired_tokens_per_neuron"]
    assert torch.equal(vector, case.checkpoint["callbacks"]["PIMonitor"]["fired_tokens_per_neuron"])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({0: torch.tensor([], dtype=torch.int64)}, "block 0 must keep at least one of its 8 neurons"),
        ({0: torch.tensor([8])}, r"must be different numbers in 0\.\.7"),
        ({1: torch.tensor([1, 1])}, r"must be different numbers in 0\.\.7"),
        ({5: torch.tensor([0])}, "cannot prune block 5"),
    ],
)
def test_neurons_that_are_not_there_are_refused(kept: dict[int, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_neurons(TrunkConfig(16, 2, 4, intermediate_size=8), kept)
