"""The norm of all gradients and what is left of them after clipping, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from onn_lightning.optim.clipping import clip_by_norm, clip_by_value, gradient_norm

LIMIT = 0.7
SHAPES: list[tuple[int, ...]] = [(37, 19), (5,), (), (3, 0), (64, 64)]


def gradients(dtype: torch.dtype = torch.float32, size: float = 1.0) -> list[Tensor]:
    torch.manual_seed(0)
    return [(size * torch.randn(shape)).to(dtype) for shape in SHAPES]


def with_gradients(values: list[Tensor]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros_like(value)) for value in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = value.clone()
    return [*parameters, nn.Parameter(torch.zeros(2))]  # one without a gradient


def reference_norm(values: list[Tensor]) -> float:
    return float(torch.cat([value.double().flatten() for value in values]).norm())


def held(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-4), (torch.float16, 1e-4)]
)
@pytest.mark.parametrize("size", [1.0, 3000.0])
def test_the_clipped_norm_is_the_limit(dtype: torch.dtype, tolerance: float, size: float) -> None:
    """Where the norm is beyond float16, too; what it misses is the rounding of the gradients themselves."""
    values = gradients(dtype, size)
    parameters = with_gradients(values)
    assert float(gradient_norm(parameters)) == pytest.approx(reference_norm(values), rel=1e-6)
    clip_by_norm(parameters, LIMIT)
    assert reference_norm(held(parameters)) == pytest.approx(LIMIT, rel=tolerance)
    factor = LIMIT / reference_norm(values)
    for value, clipped in zip(values, held(parameters), strict=True):
        torch.testing.assert_close(clipped.double(), factor * value.double(), rtol=1e-2, atol=1e-7)


def test_types_may_be_mixed() -> None:
    values = gradients()[:2] + gradients(torch.bfloat16)[2:]
    parameters = with_gradients(values)
    clip_by_norm(parameters, LIMIT)
    assert reference_norm(held(parameters)) == pytest.approx(LIMIT, rel=2e-4)


@pytest.mark.parametrize("clip", [clip_by_norm, clip_by_value])
def test_what_is_within_the_limit_keeps_every_bit(clip: Callable[..., None]) -> None:
    values = gradients(torch.bfloat16)
    parameters = with_gradients(values)
    clip(parameters, 1e4)
    for value, kept in zip(values, held(parameters), strict=True):
        assert torch.equal(value, kept)


def test_zeros_stay_zeros() -> None:
    parameters = with_gradients([torch.zeros(3), torch.zeros(2, 2)])
    clip_by_norm(parameters, LIMIT)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in held(parameters))


def test_a_norm_that_is_known_is_not_taken_again() -> None:
    values = gradients()
    parameters = with_gradients(values)
    clip_by_norm(parameters, LIMIT, norm=torch.tensor(2 * LIMIT))
    for value, clipped in zip(values, held(parameters), strict=True):
        torch.testing.assert_close(clipped, value / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clipping_by_value_is_a_clamp(dtype: torch.dtype) -> None:
    values = gradients(dtype)
    parameters = with_gradients(values)
    clip_by_value(parameters, LIMIT)
    for value, clipped in zip(values, held(parameters), strict=True):
        assert torch.equal(clipped, value.clamp(-LIMIT, LIMIT))


def sharded(rank: int) -> None:
    """Plain, sharded, replicated and not yet summed gradients, on a mesh of one and one of two dimensions."""
    dist.init_process_group("gloo")
    line, plane = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    torch.manual_seed(0)
    values = [torch.randn(5, 4), torch.randn(7, 3), torch.randn(6), torch.randn(4, 4), torch.randn(1, 3)]
    placed = [
        values[0],
        distribute_tensor(values[1], line, [Shard(0)]),
        distribute_tensor(values[2], line, [Replicate()]),
        distribute_tensor(values[3], plane, [Shard(1), Replicate()]),
        distribute_tensor(values[4], line, [Shard(0)]),  # rank 1 has no part of it
    ]
    parameters = with_gradients(placed)
    parameters.append(nn.Parameter(distribute_tensor(torch.zeros(3), line, [Replicate()])))
    summand = torch.tensor([1.0, 2.0, 3.0])
    parameters[-1].grad = DTensor.from_local(summand.clone(), line, [Partial()], run_check=False)
    expected = reference_norm([*values, 2 * summand])
    assert float(gradient_norm(parameters)) == pytest.approx(expected, rel=1e-6)
    clip_by_norm(parameters, LIMIT)
    factor = LIMIT / expected
    for value, clipped in zip([*values, 2 * summand], held(parameters), strict=True):
        whole = clipped.full_tensor() if isinstance(clipped, DTensor) else clipped
        torch.testing.assert_close(whole, factor * value)
    clip_by_value(parameters, 0.01)
    assert all(float(value.to_local().abs().max()) <= 0.01 for value in held(parameters)[2:4])  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_norm_of_sharded_gradients_is_that_of_the_whole() -> None:
    run_ranks(sharded)
