"""State of the policies that a callback holds, as plain data for a checkpoint.

Notable:
- With the state goes the name of the policy's class, so that a run resumed under another policy is told so
  and begins that policy anew, instead of failing on foreign buffers or reading them as its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn


def policies_state(policies: nn.ModuleDict) -> dict[str, Any]:
    """Class name and buffers of every policy, by its place."""
    return {
        name: {
            "policy": type(policy).__name__,
            "state": {key: value.cpu().clone() for key, value in policy.state_dict().items()},
        }
        for name, policy in policies.items()
    }


def load_policies(policies: nn.ModuleDict, states: Mapping[str, Any], owner: str) -> None:
    """Give every policy its state back; one that the checkpoint does not know begins anew, with a warning.

    Args:
        policies: by place.
        states: of `policies_state`.
        owner: name of the callback, for the warning.
    Raises:
        RuntimeError: if a state does not fit its policy (another number of modalities).
    """
    for name, policy in policies.items():
        saved = states.get(name)
        if saved is not None and saved["policy"] == type(policy).__name__:
            policy.load_state_dict(saved["state"])
        else:
            found = "none" if saved is None else saved["policy"]
            rank_zero_warn(
                f"{owner}: the checkpoint's policy for {name} is {found}, the config's "
                f"{type(policy).__name__}, which begins anew"
            )
