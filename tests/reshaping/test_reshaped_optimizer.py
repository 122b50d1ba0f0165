"""The optimizer's state after reshaping: the next step is the one that the old network would have made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from trained_case import (
    MODALITIES,
    Case,
    as_type,
    made_from,
    optimizer_from,
    some_batch,
    step,
    trained_case,
)

from onn_lightning import OmniModule
from onn_lightning.nn import SBLForm, TrunkConfig
from onn_lightning.optim import parameter_groups
from onn_lightning.reshaping import Reshaping, add_blocks, reshape_checkpoint, widen
from onn_lightning.reshaping.origins import trace

BATCH = as_type(some_batch(), torch.float64)
FORMS = {
    "normalised": SBLForm(),
    "reference": SBLForm(normalized=False),
}


def trunk_of(form: str) -> TrunkConfig:
    return TrunkConfig(16, 2, 4, 2, intermediate_size=[8, 12], sbl=FORMS[form])


def plans(trunk: TrunkConfig) -> dict[str, Reshaping]:
    return {"wider": widen(trunk, {0: 20, 1: 13}), "deeper": add_blocks(trunk, 1, 1)}


@pytest.mark.parametrize("kind", ["wider", "deeper"])
@pytest.mark.parametrize("form", FORMS)
def test_the_next_step_of_adamw_moves_old_parts_as_it_would_have_without_growth(form: str, kind: str) -> None:
    trunk = trunk_of(form)
    case = trained_case(trunk)
    plan = plans(trunk)[kind]
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    grown = made_from(new, plan.trunk)
    optimizer = optimizer_from(new, grown)
    before = {name: p.detach().clone() for name, p in case.module.named_parameters()}
    grown_before = {name: p.detach().clone() for name, p in grown.named_parameters()}
    step(case.module, case.optimizer, BATCH)
    step(grown, optimizer, BATCH)

    after = dict(case.module.named_parameters())
    origins_by_name = trace(trunk, MODALITIES, plan).origins
    for name, parameter in grown.named_parameters():
        origin = origins_by_name[name]
        if origin.source is None:
            continue
        moved = parameter.detach() - grown_before[name]
        for dimension, origins in enumerate((origin.rows, origin.columns)):
            if origins is not None:
                moved = moved.index_select(dimension, (origins >= 0).nonzero().squeeze(1))
        # also of rescaled parameters: AdamW's step does not depend on the gradients' scale
        expected = (after[origin.source] - before[origin.source]).detach()
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_new_neurons_take_no_larger_first_step_than_the_learning_rate_allows(form: str) -> None:
    trunk = trunk_of(form)
    case = trained_case(trunk, steps=10)
    plan = widen(trunk, {0: 40, 1: 40})
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    grown = made_from(new, plan.trunk)
    optimizer = optimizer_from(new, grown)
    before = [block.moie.up.mu_weight.detach().clone() for block in grown.trunk.blocks]
    step(grown, optimizer, BATCH)
    for block, old in zip(grown.trunk.blocks, before, strict=True):
        assert 0 < (block.moie.up.mu_weight - old).abs().max() < 1.5 * 3e-3


def test_states_are_matched_by_name_where_an_optimizer_sorts_its_groups() -> None:
    trunk = trunk_of("normalised")
    case = trained_case(trunk, "muon")
    plan = add_blocks(trunk, 1, 0)
    new = reshape_checkpoint(case.checkpoint, plan, MODALITIES)
    grown = made_from(new, plan.trunk)
    optimizer = optimizer_from(new, grown, "muon")
    old_state = {name: case.optimizer.state[parameter] for name, parameter in case.module.named_parameters()}
    for name, parameter in grown.named_parameters():
        number = name.split(".")[2] if name.startswith("trunk.blocks.") else None
        if number == "0":  # a new block's state is that of a new optimizer
            assert all(not value.any() for value in optimizer.state[parameter].values())
            continue
        source = name if number is None else name.replace(f"blocks.{number}", f"blocks.{int(number) - 1}")
        assert optimizer.state[parameter].keys() == old_state[source].keys()
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, old_state[source][key]), (name, key)


@pytest.mark.parametrize("kind", ["wider", "deeper"])
@pytest.mark.parametrize("keys", ["names", "places in the module"])
def test_a_state_with_other_keys_gives_the_same_and_keeps_them(kind: str, keys: str) -> None:
    """Names: of torch.distributed.checkpoint; places in the module: of Lightning's sharding strategies."""
    trunk = trunk_of("reference")
    case = trained_case(trunk)
    plan = plans(trunk)[kind]
    grown = made_from(reshape_checkpoint(case.checkpoint, plan, MODALITIES), plan.trunk)

    def renamed(state: dict[str, Any], module: OmniModule) -> dict[str, Any]:
        places = {id(p): (number, name) for number, (name, p) in enumerate(module.named_parameters())}
        chosen = [
            places[id(p)][keys == "names"] for group in parameter_groups(module) for p in group["params"]
        ]
        return {
            "state": {chosen[number]: entry for number, entry in state["state"].items()},
            "param_groups": [
                group | {"params": sorted(chosen[number] for number in group["params"])}
                for group in state["param_groups"]
            ],
        }

    checkpoint = case.checkpoint | {
        "optimizer_states": [renamed(case.checkpoint["optimizer_states"][0], case.module)]
    }
    expected = renamed(reshape_checkpoint(case.checkpoint, plan, MODALITIES)["optimizer_states"][0], grown)
    got = reshape_checkpoint(checkpoint, plan, MODALITIES)["optimizer_states"][0]
    assert [sorted(group["params"]) for group in got["param_groups"]] == [
        group["params"] for group in expected["param_groups"]
    ]
    assert got["state"].keys() == expected["state"].keys()
    for key, entry in expected["state"].items():
        assert all(torch.equal(got["state"][key][name], value) for name, value in entry.items())


def broken(case: Case, change: Any) -> dict[str, Any]:
    """The checkpoint with its optimizer state changed."""
    state = copy.deepcopy(case.checkpoint["optimizer_states"][0])
    change(state)
    return case.checkpoint | {"optimizer_states": [state]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["param_groups"][0].pop("name"), "its parameter groups have no names"),
        (lambda state: state["param_groups"][0].update(name="other"), "has the parameter groups"),
        (lambda state: state["param_groups"][0]["params"].pop(), "group 'matrix' has 11 parameters"),
        (lambda state: state["param_groups"][0]["params"].__setitem__(0, 99), "are numbered neither by"),
        (lambda state: state["state"][2].update(row=torch.zeros(3)), "'row' of trunk.blocks.0.moie.up"),
    ],
)
def test_a_state_that_cannot_be_carried_over_is_refused(change: Any, message: str) -> None:
    trunk = trunk_of("normalised")
    checkpoint = broken(trained_case(trunk), change)
    with pytest.raises(ValueError, match=message):
        reshape_checkpoint(checkpoint, widen(trunk, {0: 20}), MODALITIES)


def test_a_tensor_of_a_parameters_shape_that_nobody_knows_is_carried_with_its_rows() -> None:
    trunk = trunk_of("normalised")
    case = trained_case(trunk)
    mask = torch.arange(8 * 16.0).view(8, 16)
    checkpoint = broken(case, lambda state: state["state"][2].update(mask=mask))
    new = reshape_checkpoint(checkpoint, widen(trunk, {0: 20}), MODALITIES)["optimizer_states"][0]
    assert torch.equal(new["state"][2]["mask"][:8], mask) and not new["state"][2]["mask"][8:].any()


def test_vectors_of_callbacks_follow_their_neurons() -> None:
    trunk = trunk_of("normalised")
    case = trained_case(trunk)
    vector = case.checkpoint["callbacks"]["PIMonitor"]["fired_tokens_per_neuron"]
    deeper = reshape_checkpoint(case.checkpoint, add_blocks(trunk, 1, 1), MODALITIES)
    slices = case.module.trunk.neuron_slices
    first = slices["0.moie.down"].stop
    got = deeper["callbacks"]["PIMonitor"]["fired_tokens_per_neuron"]
    added = first + 12 - 8  # the new block is as the one behind it
    assert torch.equal(got, torch.cat((vector[:first], torch.zeros(added), vector[first:])))
    assert deeper["callbacks"]["PIMonitor"]["step"] == 3

    wider = reshape_checkpoint(case.checkpoint, widen(trunk, {0: 10}), MODALITIES)
    end = slices["0.moie.up"].stop
    got = wider["callbacks"]["PIMonitor"]["fired_tokens_per_neuron"]
    assert torch.equal(got, torch.cat((vector[:end], torch.zeros(2), vector[end:])))

    short = case.checkpoint | {"callbacks": {"PIMonitor": {"x_per_neuron": vector[:5]}}}
    with pytest.raises(ValueError, match=r"callbacks\.PIMonitor\.x_per_neuron of the checkpoint has shape"):
        reshape_checkpoint(short, widen(trunk, {0: 10}), MODALITIES)


def test_a_checkpoint_of_weights_alone_is_reshaped_too() -> None:
    trunk = trunk_of("normalised")
    case = trained_case(trunk)
    weights = {key: case.checkpoint[key] for key in ("state_dict", "onn_lightning")}
    new = reshape_checkpoint(weights, widen(trunk, {0: 10}), MODALITIES)
    assert new.keys() == weights.keys() and new["onn_lightning"]["history"][0]["step"] == 0
