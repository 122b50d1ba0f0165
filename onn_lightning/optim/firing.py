"""Which rows of a parameter an optimizer's next step may move.

Notable:
- A row stands for a neuron: row i of `mu_weight`, `sigma_weight`, `gate_param` and `mu_bias` of an SBL. The
  row of a neuron that did not fire rests: its numbers, and those of its optimizer state, keep every bit.
- Masks are handed over before each step and serve that step alone; a parameter without one moves whole.
- Of a sharded parameter (DTensor) each process takes the part of the mask that belongs to its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from onn_lightning.optim.groups import require_fitting_state
from onn_lightning.optim.row_kernels import Array, nonzero_rows


@runtime_checkable
class MovesFiringRows(Protocol):
    """An optimizer that can leave rows alone."""

    def set_firing(self, firing: Mapping[nn.Parameter, Tensor]) -> None:
        """Say which rows the next step moves; see `FiringRows.set_firing`."""


class FiringRows(torch.optim.Optimizer):
    """What the optimizers that leave rows alone share: masks of the coming step, and saved states."""

    _firing: Mapping[nn.Parameter, Tensor] = MappingProxyType({})
    found_inf: Tensor | None = None
    """Scalar float on the parameters' device; where it is 1, the next step moves nothing and counts no step.

    By this name torch's own fused steps are told, too.
    """

    def set_firing(self, firing: Mapping[nn.Parameter, Tensor]) -> None:
        """Say which rows the next `step` moves; the rows that are False keep every bit.

        Args:
            firing: for a parameter of R rows a bool tensor [R]; for a sharded parameter all R of them, or a
                DTensor sharded like it. A parameter that is not named moves whole; one that this
                optimizer does not hold is none of its business.
        Raises:
            ValueError: for a mask that is no bool vector over the parameter's rows.
        """
        for parameter, mask in firing.items():
            if mask.dtype != torch.bool or mask.ndim != 1 or mask.shape[0] != parameter.shape[0]:
                raise ValueError(
                    f"set_firing: a parameter of shape {tuple(parameter.shape)} got a mask of {mask.dtype} "
                    f"and shape {tuple(mask.shape)}: give one bool for each of its rows"
                )
        self._firing = firing

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore.

        Raises:
            ValueError: for a state of other parameter groups or shapes.
        """
        require_fitting_state(self, state_dict)
        super().load_state_dict(state_dict)

    def _take_firing(self) -> LocalMasks:
        """The masks of this step, which no later step shall see."""
        firing, self._firing = self._firing, FiringRows._firing
        return LocalMasks(firing)

    def _take_found_inf(self) -> Tensor | None:
        """The flag of this step, which no later step shall see."""
        found_inf, self.found_inf = self.found_inf, None
        return found_inf


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss of the closure that a step is given, with its gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class LocalMasks:
    """The masks of one step as each parameter's rows on this process need them.

    An SBL's parameters share one mask, so what is made of a mask is kept for the next parameter.
    """

    def __init__(self, firing: Mapping[nn.Parameter, Tensor]) -> None:
        self._firing = firing
        self._parts: dict[tuple[object, ...], Tensor] = {}
        self._numbers: dict[int, Array] = {}
        self._whole: set[int] = set()  # masks that are seen to be all True

    def whole(self, parameter: nn.Parameter) -> Tensor | None:
        """The mask over all rows, None where the parameter moves whole."""
        return self._firing.get(parameter)

    def part(self, parameter: nn.Parameter) -> Tensor | None:
        """The mask over the rows on this process, on their device.

        None where all of them move: without a mask, or where one on the CPU is seen to be all True.
        """
        mask = self._firing.get(parameter)
        if mask is None:
            return None
        if isinstance(parameter, DTensor) or mask.device != parameter.device:
            mask = self._moved_to(mask, parameter)
        if mask.is_cpu:
            self.numbers(mask)
        return None if id(mask) in self._whole else mask

    def _moved_to(self, mask: Tensor, parameter: nn.Parameter) -> Tensor:
        place = (parameter.device_mesh, *parameter.placements) if isinstance(parameter, DTensor) else ()
        key = (id(mask), parameter.device, *place)
        if key not in self._parts:
            self._parts[key] = _local_mask(mask, parameter)
        return self._parts[key]

    def numbers(self, part: Tensor) -> Array:
        """The numbers of the rows that fire, of a mask on the CPU."""
        numbers = self._numbers.get(id(part))
        if numbers is None:
            numbers = self._numbers[id(part)] = np.flatnonzero(part.numpy())
            if len(numbers) == len(part):
                self._whole.add(id(part))
        return numbers


def local_part(tensor: Tensor) -> Tensor:
    """A tensor's part on this process: itself, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local_mask(mask: Tensor, parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and not isinstance(mask, DTensor):
        # asked so, since FSDP2 over tensor parallelism shards rows in strides, which is no `Shard` to torch
        rows = [place if getattr(place, "dim", None) == 0 else Replicate() for place in parameter.placements]
        mask = distribute_tensor(mask, parameter.device_mesh, rows, src_data_rank=None)
    return local_part(mask).to(parameter.device, non_blocking=True)


def rows_with_gradient(gradient: Tensor) -> Tensor:
    """Which rows have a gradient that is not all zero: of a table, those that a token has read.

    Args:
        gradient: [R, ...]; sharded over its rows or not at all.
    Returns:
        bool [R], sharded like the gradient.
    Raises:
        ValueError: if the gradient is sharded otherwise.
    """
    if not isinstance(gradient, DTensor):
        return nonzero_rows(gradient)
    if not all(place.is_replicate() or place == Shard(0) for place in gradient.placements):
        raise ValueError(f"rows_with_gradient: {gradient.placements} shards something else than rows")
    return DTensor.from_local(
        nonzero_rows(gradient.to_local()),
        gradient.device_mesh,
        gradient.placements,
        run_check=False,
        shape=gradient.shape[:1],
        stride=(1,),
    )
