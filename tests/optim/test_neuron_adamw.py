"""`NeuronAdamW`: resting rows keep their bits, firing rows move as torch's AdamW moves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resting import (
    STEPS,
    adamw_row_by_row,
    bits,
    give_gradients,
    make_parameters,
    random_mask,
    require_the_same_bits,
    row_tensors,
    step_and_require_rest,
    through_and_broken,
)
from torch import nn
from torch._dynamo.testing import CompileCounter

from onn_lightning.optim import NeuronAdamW, row_formulas
from onn_lightning.optim.row_kernels import AdamWRows

SHAPES = [(7, 5), (33, 70), (12,)]


def torch_adamw(parameters: list[nn.Parameter], **options) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), fused=True, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resting_rows_keep_every_bit_over_several_steps(dtype: torch.dtype) -> None:
    parameters = make_parameters(*SHAPES, dtype=dtype)
    optimizer = NeuronAdamW(parameters, lr=0.1, weight_decay=0.5)
    for step in range(STEPS):
        give_gradients(parameters, step)
        firing = {p: random_mask(len(p), step + 10 * n) for n, p in enumerate(parameters)}
        step_and_require_rest(optimizer, parameters, firing)


def test_a_negative_zero_and_a_broken_gradient_leave_resting_rows_alone() -> None:
    (parameter,) = make_parameters((4, 3))
    parameter.data[0] = -0.0
    optimizer = NeuronAdamW([parameter])
    for number in (float("nan"), float("inf")):
        parameter.grad = torch.full((4, 3), number)
        before = bits(parameter[:2])
        optimizer.set_firing({parameter: torch.tensor([False, False, True, True])})
        optimizer.step()
        assert torch.equal(bits(parameter[:2]), before)
    assert all(torch.isfinite(tensor[:2]).all() for tensor in row_tensors(optimizer, parameter))


@pytest.mark.parametrize("named", ["no mask", "all fire"])
def test_without_resting_rows_it_is_torchs_fused_adamw_bit_for_bit(named: str) -> None:
    ours, theirs = make_parameters(*SHAPES), make_parameters(*SHAPES)
    optimizer, reference = NeuronAdamW(ours, lr=0.02), torch_adamw(theirs, lr=0.02, weight_decay=0.1)
    require_the_same_bits(optimizer, ours, reference, theirs, all_named=named == "all fire")


def test_states_of_torchs_fused_adamw_are_taken_and_given() -> None:
    ours, theirs = make_parameters(*SHAPES), make_parameters(*SHAPES)
    optimizer, reference = NeuronAdamW(ours, lr=0.02), torch_adamw(theirs, lr=0.02, weight_decay=0.1)
    give_gradients(theirs, 0)
    reference.step()
    optimizer.load_state_dict(reference.state_dict())
    reference.load_state_dict(optimizer.state_dict())
    assert reference.state_dict().keys() == optimizer.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_rest_now_and_then_move_as_by_the_definition(dtype: torch.dtype) -> None:
    parameters = make_parameters(*SHAPES, dtype=dtype)
    optimizer = NeuronAdamW(parameters, lr=0.05, weight_decay=0.3)
    starts = [p.detach().clone() for p in parameters]
    gradients, masks = [[] for _ in parameters], [[] for _ in parameters]
    for step in range(STEPS):
        give_gradients(parameters, step)
        for n, p in enumerate(parameters):
            gradients[n].append(p.grad.clone())
            masks[n].append(random_mask(len(p), step + 10 * n))
        optimizer.set_firing({p: masks[n][-1] for n, p in enumerate(parameters)})
        optimizer.step()
    for p, start, given_gradients, given_masks in zip(parameters, starts, gradients, masks, strict=True):
        expected = adamw_row_by_row(start, given_gradients, given_masks, lr=0.05, decay=0.3)
        torch.testing.assert_close(
            p.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12
        )


def test_a_firing_row_moves_alike_whether_its_neighbours_rest_or_not() -> None:
    ours, theirs = make_parameters((40, 70)), make_parameters((40, 70))
    optimizer, reference = NeuronAdamW(ours, lr=0.02), torch_adamw(theirs, lr=0.02, weight_decay=0.1)
    mask = random_mask(40, 0)
    for step in range(STEPS):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.set_firing({ours[0]: mask})
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours[0][mask], theirs[0][mask], rtol=1e-6, atol=1e-7)


def formula_step(optimizer: NeuronAdamW, parameters: list[nn.Parameter], masks: list[torch.Tensor]) -> None:
    """A step by the plain functions that accelerators compile."""
    states = [optimizer.state[p] for p in parameters]
    for state in states:
        state["step"] += 1
    group = optimizer.param_groups[0]
    row_formulas.adamw(
        [p.detach() for p in parameters],
        [p.grad for p in parameters],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
        masks=masks,
        lr=torch.tensor(group["lr"]),
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
    )


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_loops_and_formulas_agree_on_any_mask(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    masks = data.draw(st.lists(st.lists(st.booleans(), min_size=rows, max_size=rows), min_size=1, max_size=3))
    loops, formulas = make_parameters((rows, columns), (rows,)), make_parameters((rows, columns), (rows,))
    by_loops, by_formulas = NeuronAdamW(loops, lr=0.1), NeuronAdamW(formulas, lr=0.1)
    for optimizer, parameters in ((by_loops, loops), (by_formulas, formulas)):
        give_gradients(parameters, 7)
        optimizer.step()  # the states exist, and hold something
    for step, drawn in enumerate(masks):
        mask = torch.tensor(drawn)
        give_gradients(loops, step)
        give_gradients(formulas, step)
        step_and_require_rest(by_loops, loops, dict.fromkeys(loops, mask))
        formula_step(by_formulas, formulas, [mask, mask])
    for one, other in zip(loops, formulas, strict=True):
        for measured, expected in zip(
            row_tensors(by_loops, one), row_tensors(by_formulas, other), strict=True
        ):
            torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_formulas_compile_into_one_graph_that_no_learning_rate_compiles_again() -> None:
    parameters = make_parameters(*SHAPES)
    optimizer = NeuronAdamW(parameters, lr=0.1)
    give_gradients(parameters, 0)
    optimizer.step()
    counted = CompileCounter()
    compiled = torch.compile(row_formulas.adamw, backend=counted, fullgraph=True)
    states = [optimizer.state[p] for p in parameters]
    for step in range(3):
        compiled(
            [p.detach() for p in parameters],
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            masks=[random_mask(len(p), step) for p in parameters],
            lr=torch.full((), 0.1 / (step + 1)),
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.1,
        )
    assert counted.frame_count == 1


def test_threads_share_the_rows_and_change_nothing() -> None:
    shapes = [(30, 20), (300, 301), (7,), (90, 400)]
    results = []
    for threads in (1, 2, 3, 7):
        tensors = [p.detach().abs_() for shape in shapes for p in make_parameters(*[shape] * 4)]
        loop = AdamWRows()
        for number, four in enumerate(zip(*[iter(tensors)] * 4, strict=True)):
            rows = random_mask(len(four[0]), number, share=0.9).nonzero().flatten().numpy()
            loop.add(rows, *four, step=3.0, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        loop.run(threads)
        results.append(tensors)
    for shared in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], shared, strict=True))


def test_masks_serve_one_step_alone() -> None:
    (parameter,) = make_parameters((4, 3))
    optimizer = NeuronAdamW([parameter], lr=0.1)
    give_gradients([parameter], 0)
    optimizer.set_firing({parameter: torch.zeros(4, dtype=torch.bool)})
    before = parameter.detach().clone()
    optimizer.step()
    assert torch.equal(parameter, before)
    optimizer.step()
    assert (parameter != before).all()


def test_masks_set_by_the_closure_of_a_step_serve_that_step() -> None:
    (parameter,) = make_parameters((4, 3))
    optimizer = NeuronAdamW([parameter], lr=0.1)
    before = parameter.detach().clone()
    mask = torch.tensor([True, False, True, False])

    def closure() -> float:
        give_gradients([parameter], 0)
        optimizer.set_firing({parameter: mask})
        return 0.5

    assert optimizer.step(closure) == 0.5
    assert torch.equal((parameter != before).all(dim=1), mask)


@pytest.mark.parametrize("masked", [False, True])
def test_the_learning_rate_may_be_a_tensor(masked: bool) -> None:
    results = []
    for lr in (0.25, torch.tensor(0.25)):
        parameters = make_parameters(*SHAPES)
        optimizer = NeuronAdamW(parameters, lr=0.1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        give_gradients(parameters, 0)
        if masked:
            optimizer.set_firing({p: random_mask(len(p), 0) for p in parameters})
        optimizer.step()
        results.append(parameters)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_state_in_the_middle_of_a_file_changes_nothing(tmp_path: Path) -> None:
    through, resumed = through_and_broken(
        lambda parameters: NeuronAdamW(parameters, lr=0.1), SHAPES, tmp_path / "state.pt"
    )
    for expected, measured in zip(through, resumed, strict=True):
        assert torch.equal(bits(expected), bits(measured))


@pytest.mark.parametrize(
    "mask", [torch.ones(3, dtype=torch.bool), torch.ones(4), torch.ones(4, 3, dtype=torch.bool)]
)
def test_a_mask_that_is_no_bool_a_row_is_refused(mask: torch.Tensor) -> None:
    (parameter,) = make_parameters((4, 3))
    with pytest.raises(ValueError, match="one bool for each of its rows"):
        NeuronAdamW([parameter]).set_firing({parameter: mask})


def test_masks_of_parameters_of_others_are_none_of_its_business() -> None:
    own, foreign = make_parameters((4, 3), (5, 2))
    optimizer = NeuronAdamW([own])
    give_gradients([own], 0)
    optimizer.set_firing({foreign: torch.zeros(5, dtype=torch.bool)})
    before = own.detach().clone()
    optimizer.step()
    assert (own != before).all()


def test_a_parameter_without_gradient_is_passed_over() -> None:
    silent, loud = make_parameters((4, 3), (4, 3))
    optimizer = NeuronAdamW([silent, loud])
    give_gradients([loud], 0)
    optimizer.set_firing({silent: random_mask(4, 0), loud: random_mask(4, 0)})
    optimizer.step()
    assert silent not in optimizer.state
