"""The optimizer's state of a reshaped network, carried over by the names of parameters.

Notable:
- Saved state knows numbers only; which parameter a number is, follows from its group's name and its place
  in it (`onn_lightning.optim.parameter_groups`), in the old network and in the new. The new state is
  numbered as the saved one was.
- First moments follow a rescaled parameter's gradients, second moments their square.
- New rows and columns of a parameter begin with first moments of 0 and second moments of the mean of the old
  ones: the step count is the whole parameter's, so second moments of 0 would make their first step too large.
- A parameter that is new as a whole begins with a step count of 0, as in a new optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from onn_lightning.optim.state_keys import keys_of, names_by_group
from onn_lightning.reshaping.gather import gather
from onn_lightning.reshaping.origins import Origin, Reshaped

_POWERS = {"exp_avg": 1, "momentum_buffer": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
"""With which power of the gradients' scale a state tensor changes."""


def reshape_optimizer_state(
    saved: Mapping[str, Any], weights: Mapping[str, Any], reshaped: Reshaped
) -> dict[str, Any]:
    """The new state of one optimizer.

    Args:
        saved: as `Optimizer.state_dict` returned it, as `torch.distributed.checkpoint.state_dict` does (with
            names in place of numbers), or as Lightning's sharding strategies do (numbered otherwise).
        weights: the old `state_dict` of the module.
        reshaped: the way from the old network to the new.
    Raises:
        ValueError: if groups have no names, are not those of the old network, or a state tensor has a
            shape that is not its parameter's.
    """
    before, after = names_by_group(reshaped.old), names_by_group(reshaped.new)
    _check_groups(saved["param_groups"], before, after)
    old_keys, new_keys = _keys(saved["param_groups"], reshaped)
    groups: list[dict[str, Any]] = []
    state: dict[Any, Any] = {}
    for group in saved["param_groups"]:
        new_names = after[group["name"]]
        groups.append({**group, "params": [new_keys[name] for name in new_names]})
        known = [entry for name in before[group["name"]] if (entry := saved["state"].get(old_keys[name]))]
        for name in new_names:
            origin = reshaped.origins[name]
            if origin.source is None:
                entry = _beginning(known, reshaped.new.get_parameter(name))
            else:
                entry = _carried(
                    saved["state"].get(old_keys[origin.source], {}), origin, weights[origin.source]
                )
            if entry:
                state[new_keys[name]] = entry
    return {**saved, "state": state, "param_groups": groups}


def _keys(saved: Sequence[Mapping[str, Any]], reshaped: Reshaped) -> tuple[dict[str, Any], dict[str, Any]]:
    """By the name of each parameter its key in the saved state, and the key that it gets in the new one.

    Raises:
        ValueError: if the saved keys are of no known kind.
    """
    order = [group["name"] for group in saved]
    kind = keys_of(saved, reshaped.old)
    if kind is not None:
        return kind(reshaped.old, order), kind(reshaped.new, order)
    raise ValueError(
        "cannot carry the optimizer's state over: its parameters are numbered neither by their groups, nor "
        "in the order of the module, nor named; use the version that wrote it"
    )


def _check_groups(
    saved: Sequence[Mapping[str, Any]], before: Mapping[str, list[str]], after: Mapping[str, list[str]]
) -> None:
    names = [group.get("name") for group in saved]
    if None in names:
        raise ValueError(
            "cannot carry the optimizer's state over: its parameter groups have no names. Make the optimizer "
            "from `onn_lightning.optim.parameter_groups`, as OmniModule does"
        )
    if not sorted(map(str, names)) == sorted(before) == sorted(after):
        raise ValueError(
            f"cannot carry the optimizer's state over: the checkpoint has the parameter groups {names}, this "
            f"version makes {list(before)} of the old network and {list(after)} of the new; use the version "
            "that wrote it"
        )
    for group in saved:
        found, expected = len(group["params"]), len(before[group["name"]])
        if found != expected:
            raise ValueError(
                f"cannot carry the optimizer's state over: its group '{group['name']}' has {found} "
                f"parameters, the network described has {expected}"
            )


def _beginning(known: Sequence[Mapping[str, Any]], parameter: nn.Parameter) -> dict[str, Any]:
    """State of a parameter that is new as a whole; none where only the optimizer knows how it begins.

    Args:
        known: state of the other parameters of its group.
        parameter: of the new network.
    """
    example = known[0] if known else {}
    if not set(example) <= {"step", *_POWERS}:
        return {}
    return {
        key: value * 0 if key == "step" else value.new_zeros(parameter.shape)
        for key, value in example.items()
    }


def _carried(entry: Mapping[str, Any], origin: Origin, weight: Tensor) -> dict[str, Any]:
    if origin.is_unchanged:
        return dict(entry)
    return {
        key: _moved(key, value, origin, weight) if isinstance(value, Tensor) and value.ndim else value
        for key, value in entry.items()
    }


def _moved(key: str, value: Tensor, origin: Origin, weight: Tensor) -> Tensor:
    if value.shape != weight.shape:
        raise ValueError(
            f"cannot carry the optimizer's state over: '{key}' of {origin.source} has shape "
            f"{tuple(value.shape)}, the parameter {tuple(weight.shape)}; state of AdamW and Muon has its "
            "parameter's shape"
        )
    power = _POWERS.get(key, 0)
    if power and origin.rescaling is not None:
        scale = origin.rescaling.gradients(weight).to(value.device)
        value = (value * scale**power).to(value.dtype)
    return gather(value, origin.rows, origin.columns, value.mean() if power == 2 else 0.0)
