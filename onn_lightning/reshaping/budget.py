"""What a network costs, measured on its checkpoint, and budgets for it.

Notable:
- A checkpoint is measured on its outline: the same plain data with tensors of the meta device in place of
  the real ones. Outlines can be reshaped like checkpoints, so what a plan saves is measured, not guessed.
- Tensors that share their numbers (tied weights) count once, as they are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from onn_lightning.flops import trunk_forward_flops
from onn_lightning.modality import Modality
from onn_lightning.network import Network
from onn_lightning.nn import TrunkConfig


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Args:
        parameters: trained numbers.
        memory: bytes of weights and optimizer state, in the types in which a checkpoint stores them.
        flops: of the trunk's forward pass, a token.
    """

    parameters: int
    memory: int
    flops: float


@dataclass(frozen=True)
class Budget:
    """What a network may cost; several limits must all hold.

    Args:
        parameters: at most so many trained numbers.
        memory: at most so many bytes of weights and optimizer state.
        flops: at most so many operations a token in the trunk's forward pass.
        row_length: tokens in a row, for which `flops` are counted.
    Raises:
        ValueError: without any limit, or for one that is not above 0.
    """

    parameters: float | None = None
    memory: float | None = None
    flops: float | None = None
    row_length: int = 512

    def __post_init__(self) -> None:
        limits = self._limits()
        if not limits:
            raise ValueError("no budget: give at least one of parameters, memory (bytes) and flops (a token)")
        for name, limit in (*limits.items(), ("row_length", self.row_length)):
            if not limit > 0:
                raise ValueError(f"budget of {name} is {limit}: it must be above 0")

    def _limits(self) -> dict[str, float]:
        limits = {"parameters": self.parameters, "memory": self.memory, "flops": self.flops}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def excess(self, size: Size) -> dict[str, float]:
        """By how much each limit is exceeded, those that are."""
        over = {name: getattr(size, name) - limit for name, limit in self._limits().items()}
        return {name: amount for name, amount in over.items() if amount > 0}

    def compare(self, size: Size) -> str:
        """What there is beside what may be, for a message."""
        shown = [
            f"{getattr(size, name):,.0f} {_UNITS[name]} of at most {limit:,.0f}"
            for name, limit in self._limits().items()
        ]
        return ", ".join(shown) + (f" (rows of {self.row_length} tokens)" if self.flops is not None else "")


_UNITS = {"parameters": "parameters", "memory": "bytes", "flops": "FLOPs a token"}


def measure(
    checkpoint: Mapping[str, Any], trunk: TrunkConfig, modalities: Sequence[Modality], row_length: int
) -> Size:
    """The size of the network of a checkpoint.

    Args:
        checkpoint: an outline or a real one: its "state_dict" and, where it has them, "optimizer_states".
        trunk: shape of its trunk.
        modalities: its modalities.
        row_length: tokens in a row.
    """
    stored: dict[int, int] = {}
    bare = outline(checkpoint)
    states = [state["state"] for state in bare.get("optimizer_states", ())]
    for tensor in _tensors([bare["state_dict"], states]):
        stored[id(tensor)] = tensor.numel() * tensor.element_size()
    return Size(
        parameters=count_parameters(trunk, modalities),
        memory=sum(stored.values()),
        flops=trunk_forward_flops(trunk, row_length),
    )


def count_parameters(trunk: TrunkConfig, modalities: Sequence[Modality]) -> int:
    """How many trained numbers a network has.

    Args:
        trunk: shape of its trunk.
        modalities: its modalities.
    """
    with torch.device("meta"):
        network = Network(trunk, modalities)
    return sum(parameter.numel() for parameter in network.parameters())


def outline(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights and the optimizer's state of a checkpoint as tensors without numbers; the rest as it is."""
    known: dict[Any, Tensor] = {}
    parts = {key: checkpoint[key] for key in ("state_dict", "optimizer_states") if key in checkpoint}
    return {**checkpoint, **{key: _without_numbers(part, known) for key, part in parts.items()}}


def _without_numbers(value: Any, known: dict[Any, Tensor]) -> Any:
    if isinstance(value, Tensor):
        place = (value.to_local() if isinstance(value, DTensor) else value).data_ptr()
        key = (place, value.shape, value.dtype) if place else id(value)
        if key not in known:
            known[key] = torch.empty(value.shape, dtype=value.dtype, device="meta")
        return known[key]
    if isinstance(value, Mapping):
        return {key: _without_numbers(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numbers(item, known) for item in value]
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []
