"""A saved optimizer state is taken by the parameters it belongs to, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from resting import give_gradients, make_parameters
from torch import nn

from onn_lightning.nn import SparseBayesianLinear
from onn_lightning.optim import MuonAdamW, NeuronAdamW, parameter_groups


def trained(optimizer: Any) -> Any:
    for group in optimizer.param_groups:
        give_gradients(group["params"], 0)
    optimizer.step()
    return optimizer


def groups_of(inputs: int = 4, outputs: int = 6) -> list[dict[str, Any]]:
    return parameter_groups(SparseBayesianLinear(inputs, outputs))


def groups_before_the_gates_had_their_own() -> list[dict[str, Any]]:
    matrix, sigma, gate, vector = groups_of()
    return [matrix, sigma, vector | {"params": [*gate["params"], *vector["params"]]}]


@pytest.mark.parametrize("make", [NeuronAdamW, MuonAdamW])
def test_a_state_of_other_groups_is_refused_and_both_are_named(make: Any) -> None:
    saved = trained(make(groups_before_the_gates_had_their_own())).state_dict()
    with pytest.raises(ValueError) as refused:
        make(groups_of()).load_state_dict(saved)
    assert "matrix (1), sigma (1), vector (2)" in str(refused.value)
    assert "matrix (1), sigma (1), gate (1), vector (1)" in str(refused.value)
    assert "weights alone" in str(refused.value)


@pytest.mark.parametrize("make", [NeuronAdamW, MuonAdamW])
def test_groups_that_only_changed_places_are_refused(make: Any) -> None:
    """torch assigns by position: the counts fit, the parameters would not."""
    matrix, sigma, gate, vector = groups_of()
    saved = trained(make([matrix, gate, sigma, vector])).state_dict()
    with pytest.raises(ValueError, match="parameter groups"):
        make(groups_of()).load_state_dict(saved)


@pytest.mark.parametrize("make", [NeuronAdamW, MuonAdamW])
def test_a_state_of_other_shapes_is_refused(make: Any) -> None:
    saved = trained(make(groups_of(outputs=8))).state_dict()
    with pytest.raises(ValueError, match=r"shape \(8, 4\), the parameter \(6, 4\)"):
        make(groups_of()).load_state_dict(saved)


def test_groups_without_names_are_taken_by_their_sizes() -> None:
    saved = trained(NeuronAdamW(make_parameters((3, 2), (3,)))).state_dict()
    NeuronAdamW(make_parameters((3, 2), (3,))).load_state_dict(saved)
    with pytest.raises(ValueError, match="unnamed"):
        NeuronAdamW([nn.Parameter(torch.zeros(3))]).load_state_dict(saved)
