"""Weights, gradients and optimizer state of one GPU, for each way of spreading a run over GPUs.

Notable:
- The optimizer's state is found out on a miniature: the run's own optimizer makes one step on parameters of a
  few numbers, in the same groups. So it holds for any optimizer, and no rule can grow old.
- DDP is counted as `configs/strategy/ddp.yaml` sets it: gradients lie in the buckets that are summed up
  (with Lightning's plain `strategy: ddp` they are there twice). The gradients of the KL term come first in
  the backward pass, those of a block's tokens later: until then they wait outside the buckets.
- FSDP2 keeps an n-th of everything, and the weights around the trunk whole. For a moment of the backward pass
  `distributed/parallelize.py` has two blocks whole, the one that runs and the one fetched meanwhile, and the
  gradients of one and of what stands around the trunk; of blocks a rank's neurons under tensor parallelism.
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
        weights: parameters; with FSDP2 shards, and what is whole all the time.
        gradients: with FSDP2 shards.
        optimizer: its state.
        gathered: needed for a moment of a block's backward pass, beyond all else: what is whole, or there
            twice, only then.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """What is held all the time."""
        return self.weights + self.gradients + self.optimizer


def strategies(
    module: OmniModule, precision: Precision, gpus: int, tensor_parallel: int = 1
) -> dict[str, States]:
    """Bytes a GPU by strategy: "single"; for several GPUs "ddp", "fsdp2" and, if asked for, "fsdp2_tp".

    Args:
        module: on any device, the meta device included.
        precision: bytes of the numbers.
        gpus: of the whole run.
        tensor_parallel: GPUs that share the neurons of every layer, a divisor of `gpus`.
    """
    weights = sum(parameter.numel() for parameter in module.parameters()) * precision.parameter
    state = optimizer_numbers(module) * precision.parameter
    found = {"single": States(weights, weights, state)}
    if gpus > 1:
        beliefs = [sbl.mu_weight.numel() + sbl.sigma_weight.numel() for _, sbl in module.trunk.sbl_layers()]
        found["ddp"] = States(weights, weights, state, sum(beliefs) * precision.parameter)
        blocks = [sum(p.numel() for p in block.parameters()) for block in module.trunk.blocks]
        around = weights - sum(blocks) * precision.parameter
        for name, ranks in (("fsdp2", 1), ("fsdp2_tp", tensor_parallel)):
            block = max(blocks) // ranks * precision.parameter
            gathered = (min(2, len(blocks)) + 1) * block + around
            found[name] = States(weights // gpus + around, weights // gpus, state // gpus, gathered)
        if tensor_parallel == 1:
            del found["fsdp2_tp"]
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
