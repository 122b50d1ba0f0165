"""Weights, gradients and optimizer state of one GPU, for each way of spreading a run over GPUs.

Notable:
- The optimizer's state is found out on a miniature: the run's own optimizer makes one step on parameters of a
  few numbers, in the same groups. So it holds for any optimizer, and no rule can grow old.
- DDP keeps the gradients a second time, in the buckets that it sums over ranks.
- FSDP2 keeps an n-th of everything, and two blocks whole: the one that runs and the one fetched meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onn_lightning.estimate.activations import Precision
from onn_lightning.module import OmniModule
from onn_lightning.optim import parameter_groups

_SIDE = 4  # of the miniature's parameters


@dataclass(frozen=True)
class States:
    """Bytes that one GPU holds through all of training.

    Args:
        weights: parameters; with FSDP2 also the blocks that are whole for the moment.
        gradients: with DDP also their buckets.
        optimizer: its state.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer


def strategies(module: OmniModule, precision: Precision, gpus: int) -> dict[str, States]:
    """Bytes a GPU by strategy: "single", and for several GPUs "ddp" and "fsdp2".

    Args:
        module: on any device, the meta device included.
        precision: bytes of the numbers.
        gpus: of the whole run.
    """
    weights = sum(parameter.numel() for parameter in module.parameters()) * precision.parameter
    state = optimizer_numbers(module) * precision.parameter
    found = {"single": States(weights, weights, state)}
    if gpus > 1:
        block = max(sum(p.numel() for p in block.parameters()) for block in module.trunk.blocks)
        whole = 2 * block * precision.parameter
        found["ddp"] = States(weights, 2 * weights, state)
        found["fsdp2"] = States(weights // gpus + whole, weights // gpus, state // gpus)
    return found


def optimizer_numbers(module: OmniModule) -> int:
    """Numbers in the state of the module's optimizer."""
    groups: list[dict[str, Any]] = parameter_groups(module)
    small = [group | {"params": [_miniature(p) for p in group["params"]]} for group in groups]
    large = [parameter for group in groups for parameter in group["params"]]
    miniatures = [parameter for group in small for parameter in group["params"]]
    make: Callable[[Any], torch.optim.Optimizer] = module.optimizer
    optimizer = make(small)
    optimizer.step()
    total = 0
    for parameter, miniature in zip(large, miniatures, strict=True):
        for value in optimizer.state[miniature].values():
            if isinstance(value, torch.Tensor):
                total += parameter.numel() if value.shape == miniature.shape else value.numel()
    return total


def _miniature(parameter: nn.Parameter) -> nn.Parameter:
    small = nn.Parameter(torch.ones([min(_SIDE, size) for size in parameter.shape], device="cpu"))
    small.grad = torch.ones_like(small)
    return small
