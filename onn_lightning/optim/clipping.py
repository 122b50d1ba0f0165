"""The norm of all gradients, and clipping by it or by value: in bfloat16, over shards, without the host.

Notable:
- Norms are float32 whatever the gradients are. torch's `clip_grad_norm_` takes them in the gradients' own
  type: in bfloat16 that is two to three digits, in float16 they overflow above 65,504. What is left to miss
  is that the clipped gradients are rounded to their type, in bfloat16 by 0.2 % at most.
- Of a sharded gradient (DTensor) each process adds up its own part, and the parts are summed over the mesh
  dimensions that shard it; those that replicate it do not count it twice. Plain and sharded gradients, and
  gradients on several meshes, may stand side by side.
- One kernel for many tensors (foreach) where torch has one; a factor of float32 on narrower gradients takes
  one for each. Nothing is read back from the device, and no gradient is gathered.
- Scaled down to the limit itself: torch adds 1e-6 to the norm, which this does not need, since a norm of zero
  divides to infinity and is clamped like any small one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from onn_lightning.optim.firing import local_part


def local_norms(gradients: Iterable[Tensor]) -> list[Tensor]:
    """The norm of every gradient's part on this process, float32 or wider; of those that have one."""
    parts = [part for part in map(local_part, gradients) if part.numel()]
    if not parts:
        return []
    wide = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    return list(torch._foreach_norm(parts, 2, dtype=wide))


@torch.no_grad()
def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of all gradients as if they were one vector, the same on all processes that share them.

    Args:
        parameters: at least one; those without a gradient count as zeros.
    Returns:
        Scalar, float32 or wider, on the device of the first parameter; inf or NaN where a gradient is.
    """
    places: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = _summed(parameter.grad)
            places[_sharding(gradient)].append(gradient)
    total = torch.zeros((), device=parameters[0].device)
    for (mesh, dimensions), gradients in places.items():
        norms = [norm.to(total.device, non_blocking=True) for norm in local_norms(gradients)]
        squares = torch.stack(norms).square().sum() if norms else torch.zeros_like(total)
        for dimension in dimensions:
            assert mesh is not None
            dist.all_reduce(squares, group=mesh.get_group(dimension))
        total = total + squares
    return total.sqrt()


@torch.no_grad()
def clip_by_norm(parameters: Sequence[nn.Parameter], limit: float, norm: Tensor | None = None) -> None:
    """Scale all gradients down so that their norm is `limit`, where it is above.

    Args:
        parameters: at least one.
        limit: above 0.
        norm: that of their gradients, where it is known.
    """
    factor = (limit / (gradient_norm(parameters) if norm is None else norm)).clamp(max=1.0)
    for parts in _by_kind(parameters):
        own = factor.to(parts[0].device, non_blocking=True)
        if parts[0].dtype == own.dtype:
            torch._foreach_mul_(parts, own)
            continue
        for part in parts:
            part.mul_(own.expand_as(part))  # as a scalar, torch would round it to the gradient's type first


@torch.no_grad()
def clip_by_value(parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Bring every number of every gradient into [-limit, limit].

    Args:
        parameters: any number of them.
        limit: above 0.
    """
    for parts in _by_kind(parameters):
        torch._foreach_clamp_min_(parts, -limit)
        torch._foreach_clamp_max_(parts, limit)


def _by_kind(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    """The gradients' parts on this process, together where one kernel can take them."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            part = local_part(parameter.grad)
            kinds[part.device, part.dtype].append(part)
    return list(kinds.values())


def _summed(gradient: Tensor) -> Tensor:
    """The gradient, itself where no process holds a mere summand of it."""
    if isinstance(gradient, DTensor) and any(place.is_partial() for place in gradient.placements):
        return gradient.full_tensor()
    return gradient


def _sharding(gradient: Tensor) -> tuple[DeviceMesh | None, tuple[int, ...]]:
    """The mesh of a gradient, and its dimensions over which the gradient is sharded."""
    if not isinstance(gradient, DTensor):
        return None, ()
    places = enumerate(gradient.placements)
    return gradient.device_mesh, tuple(number for number, place in places if not place.is_replicate())
