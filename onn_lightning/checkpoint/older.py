"""Checkpoints of before: brought to the shapes that parameters have today.

Notable: FSDP2 shards no parameter without a dimension, so those of one element, which had none, have one now.
They are told by comparison with the network; a modality's own parameters stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from onn_lightning.optim.state_keys import keys_of


def in_todays_shapes(checkpoint: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """A checkpoint whose parameters of one element have one dimension, in weights and optimizer state.

    Args:
        checkpoint: with a whole `state_dict`; not changed.
        network: that of the checkpoint, in today's shapes; on any device.
    """
    weights = checkpoint["state_dict"]
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    old = [name for name, shape in shapes.items() if shape == (1,) and _is_scalar(weights.get(name))]
    if not old:
        return dict(checkpoint)
    new = {**checkpoint, "state_dict": {**weights, **{name: weights[name].reshape(1) for name in old}}}
    if "optimizer_states" in checkpoint:
        new["optimizer_states"] = [_state(state, network, old) for state in checkpoint["optimizer_states"]]
    return new


def _state(saved: Mapping[str, Any], network: nn.Module, names: list[str]) -> dict[str, Any]:
    groups = saved["param_groups"]
    kind = keys_of(groups, network) if all("name" in group for group in groups) else None
    if kind is None:  # of an optimizer that knows its own state
        return dict(saved)
    keys = kind(network, [group["name"] for group in groups])
    state = dict(saved["state"])
    for key in (keys[name] for name in names):
        if key in state:
            state[key] = {
                kind: value.reshape(1) if kind != "step" and _is_scalar(value) else value
                for kind, value in state[key].items()
            }
    return {**saved, "state": state}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0
