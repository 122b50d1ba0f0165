"""Muon with resting rows, alone and in `MuonAdamW`: against torch's Muon on the rows that fire."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resting import (
    STEPS,
    bits,
    give_gradients,
    make_parameters,
    muon_on_gathered_rows,
    random_mask,
    require_the_same_bits,
    row_tensors,
    size_of,
    step_and_require_rest,
    through_and_broken,
)
from torch import nn

from onn_lightning.optim import MuonAdamW
from onn_lightning.optim.neuron_muon import NeuronMuon

SHAPES = [(24, 16), (16, 40), (300, 260)]
ROUNDING = 0.02
"""By how much an update may differ where zeros among the rows make bfloat16 round otherwise; that is what the
iteration in bfloat16 differs from itself in float32 (0.012)."""


def torch_muon(parameters: list[nn.Parameter], lr: float) -> torch.optim.Muon:
    return torch.optim.Muon(
        parameters, lr=lr, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )


def joint(parameters: list[nn.Parameter], lr: float = 0.1) -> MuonAdamW:
    """The matrices to Muon, the vectors to AdamW."""
    groups = {
        "matrix": [p for p in parameters if p.ndim == 2],
        "vector": [p for p in parameters if p.ndim == 1],
    }
    return MuonAdamW([{"params": held, "name": name} for name, held in groups.items()], lr=lr)


@pytest.mark.parametrize("named", ["no mask", "all fire"])
def test_without_resting_rows_it_is_torchs_muon_bit_for_bit(named: str) -> None:
    ours, theirs = make_parameters(*SHAPES), make_parameters(*SHAPES)
    optimizer, reference = NeuronMuon(ours, lr=0.02), torch_muon(theirs, lr=0.02)
    require_the_same_bits(optimizer, ours, reference, theirs, all_named=named == "all fire")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resting_rows_keep_every_bit_over_several_steps(dtype: torch.dtype) -> None:
    parameters = make_parameters(*SHAPES, (24,), dtype=dtype)
    optimizer = joint(parameters)
    for step in range(STEPS):
        give_gradients(parameters, step)
        firing = {p: random_mask(len(p), step + 10 * n) for n, p in enumerate(parameters)}
        step_and_require_rest_of_some(optimizer, parameters, firing)


def step_and_require_rest_of_some(optimizer, parameters, firing) -> None:
    """As `step_and_require_rest`, but a row that fires may keep some of its numbers to bfloat16."""
    before = {p: [bits(tensor) for tensor in row_tensors(optimizer, p)] for p in parameters}
    optimizer.set_firing(firing)
    optimizer.step()
    for p in parameters:
        for old, new in zip(before[p], [bits(tensor) for tensor in row_tensors(optimizer, p)], strict=False):
            assert torch.equal(old[~firing[p]], new[~firing[p]])
            assert not torch.equal(old[firing[p]], new[firing[p]])


def test_the_rows_that_fire_move_as_a_matrix_of_their_own() -> None:
    for shape in SHAPES:
        (parameter,) = make_parameters(shape)
        start, gradients, masks = parameter.detach().clone(), [], []
        optimizer = NeuronMuon([parameter], lr=0.02, weight_decay=0.3)
        for step in range(STEPS):
            give_gradients([parameter], step)
            gradients.append(parameter.grad.clone())
            masks.append(random_mask(shape[0], step))
            optimizer.set_firing({parameter: masks[-1]})
            optimizer.step()
        expected = muon_on_gathered_rows(start, gradients, masks, lr=0.02, decay=0.3)
        difference = size_of(parameter - expected) / size_of(expected - start)
        assert difference < ROUNDING


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_masks_on_whole_tensors_do_what_gathering_does(data: st.DataObject) -> None:
    """The way of accelerators against the way of the CPU: the same but for bfloat16's rounding."""
    rows, columns = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    (gathered,) = make_parameters((rows, columns))
    # the loops take contiguous tensors alone: this one goes the way of whole tensors
    (strided,) = make_parameters((rows, columns))
    strided.data = strided.data.T.contiguous().T
    updates = []
    for parameter in (gathered, strided):
        optimizer = NeuronMuon([parameter], lr=0.1, weight_decay=0.0)
        give_gradients([parameter], 3)
        before = parameter.detach().clone()
        optimizer.set_firing({parameter: mask})
        optimizer.step()
        assert torch.equal(bits(parameter[~mask]), bits(before[~mask]))
        updates.append(parameter.detach() - before)
    assert size_of(updates[0] - updates[1]) <= 0.03 * size_of(updates[0]) + 1e-12


def test_the_update_of_few_rows_has_the_size_of_adamws() -> None:
    (parameter,) = make_parameters((300, 40))
    start = parameter.detach().clone()
    optimizer = NeuronMuon([parameter], lr=1.0, weight_decay=0.0)
    give_gradients([parameter], 0)
    mask = torch.zeros(300, dtype=torch.bool)
    mask[:20] = True
    optimizer.set_firing({parameter: mask})
    optimizer.step()
    assert size_of((parameter - start)[mask]) == pytest.approx(0.2, rel=0.2)


def test_nothing_moves_where_nothing_fires() -> None:
    parameters = make_parameters((8, 6), (8,))
    optimizer = joint(parameters)
    for step in range(2):
        give_gradients(parameters, step)
        step_and_require_rest(
            optimizer, parameters, {p: torch.zeros(8, dtype=torch.bool) for p in parameters}
        )


def test_a_broken_gradient_leaves_resting_rows_alone() -> None:
    parameters = make_parameters((8, 6), (8,))
    optimizer = joint(parameters)
    mask = random_mask(8, 0)
    for p in parameters:
        p.grad = torch.full_like(p, float("nan"))
    before = [bits(p[~mask]) for p in parameters]
    optimizer.set_firing(dict.fromkeys(parameters, mask))
    optimizer.step()
    assert all(torch.equal(bits(p[~mask]), old) for p, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_the_learning_rate_may_be_a_tensor(masked: bool) -> None:
    results = []
    for lr in (0.25, torch.tensor(0.25)):
        parameters = make_parameters(*SHAPES)
        optimizer = joint(parameters)
        for group in optimizer.param_groups:
            group["lr"] = lr
        give_gradients(parameters, 0)
        if masked:
            optimizer.set_firing({p: random_mask(len(p), 0) for p in parameters})
        optimizer.step()
        results.append(parameters)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_state_in_the_middle_of_a_file_changes_nothing(tmp_path: Path) -> None:
    through, resumed = through_and_broken(joint, [*SHAPES, (24,)], tmp_path / "state.pt")
    for expected, measured in zip(through, resumed, strict=True):
        assert torch.equal(bits(expected), bits(measured))
