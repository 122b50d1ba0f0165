"""Which parameter a key of a saved optimizer state stands for.

Notable: a saved state knows no names, but numbers, and these are counted in two ways; only
`torch.distributed.checkpoint` keeps names. Which way it is, the keys of the groups tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from onn_lightning.optim.groups import parameter_groups

Keys = Callable[[nn.Module, Sequence[str]], dict[str, Any]]
"""The key of every parameter of a network by its name, given the names of the saved groups in order."""


def keys_of(saved: Sequence[Mapping[str, Any]], network: nn.Module) -> Keys | None:
    """How the parameters of a saved state are keyed.

    Args:
        saved: its groups, named as `parameter_groups` names them.
        network: for which it was saved; on any device.
    Returns:
        None if the keys are of no known kind.
    """
    order = [group["name"] for group in saved]
    found = {group["name"]: set(group["params"]) for group in saved}
    by_group = names_by_group(network)
    for kind in (_by_name, _by_place_in_groups, _by_place_in_module):
        keys = kind(network, order)
        if all({keys[name] for name in names} == found.get(group) for group, names in by_group.items()):
            return kind
    return None


def names_by_group(network: nn.Module) -> dict[str, list[str]]:
    """The names of a network's parameters in each of its groups, in their order."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        group["name"]: [names[id(parameter)] for parameter in group["params"]]
        for group in parameter_groups(network)
    }


def _by_name(network: nn.Module, order: Sequence[str]) -> dict[str, Any]:
    """As `torch.distributed.checkpoint.state_dict` does."""
    return {name: name for name, _ in network.named_parameters()}


def _by_place_in_groups(network: nn.Module, order: Sequence[str]) -> dict[str, Any]:
    """As torch's optimizers do."""
    groups = names_by_group(network)
    return {name: number for number, name in enumerate(name for group in order for name in groups[group])}


def _by_place_in_module(network: nn.Module, order: Sequence[str]) -> dict[str, Any]:
    """As Lightning's sharding strategies do."""
    return {name: number for number, (name, _) in enumerate(network.named_parameters())}
