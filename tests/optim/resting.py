"""Parameters, gradients and masks for the tests of optimizers whose rows may rest, and plain references."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 4


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as whole numbers, which tell 0.0 from -0.0 and one NaN from another."""
    return (
        tensor.detach().clone().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    )


def make_parameters(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def random_mask(rows: int, seed: int, share: float = 0.5) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(2000 + seed)) < share


def row_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """The parameter and all of its state that has rows."""
    state = optimizer.state.get(parameter, {})
    return [parameter, *(state[key] for key in sorted(state) if state[key].ndim)]


def step_and_require_rest(
    optimizer: Any, parameters: list[nn.Parameter], firing: Mapping[nn.Parameter, Tensor]
) -> None:
    """One step; every resting row keeps its bits in the parameter and in its state, every other one moves."""
    before = {p: [bits(tensor) for tensor in row_tensors(optimizer, p)] for p in parameters}
    optimizer.set_firing(firing)
    optimizer.step()
    for parameter in parameters:
        mask = firing.get(parameter, torch.ones(len(parameter), dtype=torch.bool))
        after = [bits(tensor) for tensor in row_tensors(optimizer, parameter)]
        if len(before[parameter]) == 1:  # the state was made by this step
            resting_state = [tensor[~mask] for tensor in after[1:]]
            assert all(not rows.any() for rows in resting_state)
        for old, new in zip(before[parameter], after, strict=False):
            changed = (old != new).flatten(1).any(dim=1) if old.ndim > 1 else old != new
            assert torch.equal(changed, mask)


def require_the_same_bits(
    optimizer: Any,
    ours: list[nn.Parameter],
    reference: torch.optim.Optimizer,
    theirs: list[nn.Parameter],
    all_named: bool,
) -> None:
    """Steps of both on equal parameters and gradients; `all_named`: with masks of which every row fires."""
    for step in range(STEPS):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        if all_named:
            optimizer.set_firing({p: torch.ones(len(p), dtype=torch.bool) for p in ours})
        optimizer.step()
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        for measured, expected in zip(
            row_tensors(optimizer, one), row_tensors(reference, other), strict=True
        ):
            assert torch.equal(bits(measured), bits(expected))


def adamw_row_by_row(
    start: Tensor, gradients: list[Tensor], masks: list[Tensor], lr: float, decay: float
) -> Tensor:
    """AdamW from its definition in float64, one row after the other; betas 0.9 and 0.95, eps 1e-8."""
    result = start.detach().double().clone()
    for i in range(len(result)):
        mean, square = torch.zeros_like(result[i]), torch.zeros_like(result[i])
        for step, (gradient, mask) in enumerate(zip(gradients, masks, strict=True), start=1):
            if not mask[i]:
                continue
            g = gradient[i].double()
            mean = 0.9 * mean + 0.1 * g
            square = 0.95 * square + 0.05 * g * g
            unbiased = mean / (1 - 0.9**step), square / (1 - 0.95**step)
            result[i] = result[i] * (1 - lr * decay) - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return result


def muon_on_gathered_rows(
    start: Tensor, gradients: list[Tensor], masks: list[Tensor], lr: float, decay: float
) -> Tensor:
    """torch's own Muon, in every step on a matrix made of the rows that fire, momentum carried along."""
    result, momentum = start.detach().clone(), torch.zeros_like(start)
    for gradient, mask in zip(gradients, masks, strict=True):
        rows = nn.Parameter(result[mask].clone())
        muon = torch.optim.Muon(
            [rows], lr=lr, momentum=0.95, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        muon.state[rows]["momentum_buffer"] = momentum[mask].clone()
        rows.grad = gradient[mask].clone()
        muon.step()
        result[mask] = rows.detach()
        momentum[mask] = muon.state[rows]["momentum_buffer"]
    return result


def saved_and_loaded(optimizer: torch.optim.Optimizer, again: torch.optim.Optimizer, file: Any) -> None:
    """Give `again` the state of `optimizer` through a file."""
    torch.save(optimizer.state_dict(), file)
    again.load_state_dict(torch.load(file, weights_only=True))


def through_and_broken(
    make: Callable[[list[nn.Parameter]], Any], shapes: list[tuple[int, ...]], file: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Everything with rows after `STEPS` masked steps in one go, and with a file in the middle."""

    def train(optimizer: Any, parameters: list[nn.Parameter], steps: range) -> None:
        for step in steps:
            give_gradients(parameters, step)
            optimizer.set_firing({p: random_mask(len(p), step + 10 * n) for n, p in enumerate(parameters)})
            optimizer.step()

    through = make_parameters(*shapes)
    one = make(through)
    train(one, through, range(STEPS))
    broken = make_parameters(*shapes)
    two = make(broken)
    train(two, broken, range(STEPS // 2))
    resumed = copy.deepcopy(broken)
    three = make(resumed)
    saved_and_loaded(two, three, file)
    train(three, resumed, range(STEPS // 2, STEPS))
    return (
        [tensor for p in through for tensor in row_tensors(one, p)],
        [tensor for p in resumed for tensor in row_tensors(three, p)],
    )


def size_of(update: Tensor) -> float:
    """Root mean square."""
    return float(update.detach().double().square().mean().sqrt())
