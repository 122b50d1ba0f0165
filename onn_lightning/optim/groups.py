"""Named parameter groups, and whether a saved optimizer state belongs to them.

Notable:
- `matrix` (mean weights and projections: decayed), `sigma`, `gate`, `embedding` (tables), `vector` (biases,
  gains and all that is no matrix); none but `matrix` is decayed. Any torch optimizer takes them as they are.
- torch assigns a saved state by position alone and checks no shape; `require_fitting_state` compares the
  groups' names and the shapes as well, so that a state of other parameters is refused, not misread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = ("matrix", "sigma", "gate", "embedding", "vector")


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Sort a module's parameters into the named groups; tied parameters appear once.

    Args:
        module: any module; SBLs are told by the names of their parameters.
    Returns:
        groups that hold something, in the order of `GROUPS`, as torch's optimizers take them.
    """
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in module.named_parameters():
        if id(parameter) in embeddings:
            groups["embedding"].append(parameter)
        elif name.endswith("sigma_weight"):
            groups["sigma"].append(parameter)
        elif name.endswith("gate_param"):
            groups["gate"].append(parameter)
        elif parameter.ndim == 2:
            groups["matrix"].append(parameter)
        else:
            groups["vector"].append(parameter)
    return [
        {"params": parameters, "name": name} | ({} if name == "matrix" else {"weight_decay": 0.0})
        for name, parameters in groups.items()
        if parameters
    ]


def require_fitting_state(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Refuse a saved state that belongs to other parameter groups.

    Args:
        optimizer: the optimizer that is to take it.
        state_dict: what an optimizer's `state_dict` returned.
    Raises:
        ValueError: where the groups' names or sizes, or the shape of a state tensor, differ.
    """
    saved = [(group.get("name"), len(group["params"])) for group in state_dict["param_groups"]]
    own = [(group.get("name"), len(group["params"])) for group in optimizer.param_groups]
    if saved != own:
        raise ValueError(
            f"the saved optimizer state has the parameter groups {_listed(saved)}, this run has "
            f"{_listed(own)}: it was saved by another version or for another model. Go on from the weights "
            "alone (OmniModule.load_from_checkpoint), or train anew"
        )
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in state_dict["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"the saved {key} of parameter {number} has shape {tuple(value.shape)}, the parameter "
                    f"{tuple(parameter.shape)}: the optimizer state was saved for another model"
                )


def _listed(groups: list[tuple[str | None, int]]) -> str:
    return ", ".join(f"{name or 'unnamed'} ({count})" for name, count in groups)
