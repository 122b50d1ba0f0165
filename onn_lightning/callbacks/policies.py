"""What the callbacks that ask policies share: the monitor before them, and the policies' state.

Notable:
- With the state goes the name of the policy's class, so that a run resumed under another policy is told so
  and begins that policy anew, instead of failing on foreign buffers or reading them as its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from onn_lightning.callbacks.pi_monitor import ReadsVitals


class PolicyCallback(ReadsVitals):
    """Holds policies; what to do with their answers is the subclass's.

    Args:
        policies: by place.
    """

    def __init__(self, policies: Mapping[str, nn.Module]) -> None:
        self.policies = nn.ModuleDict(policies)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The policies' state lies where the vitals are made."""
        # a copy: ranks spawned on one machine would share the memory of what they were given
        self.policies = copy.deepcopy(self.policies).to(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """Class name and buffers of every policy, by its place, on the CPU."""
        return {
            name: {
                "policy": type(policy).__name__,
                "state": {key: value.cpu().clone() for key, value in policy.state_dict().items()},
            }
            for name, policy in self.policies.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give every policy its state back; one that is unknown begins anew, with a warning.

        Raises:
            RuntimeError: if a state does not fit its policy (another number of modalities).
        """
        for name, policy in self.policies.items():
            saved = state_dict.get(name)
            if saved is not None and saved["policy"] == type(policy).__name__:
                policy.load_state_dict(saved["state"])
            else:
                found = "none" if saved is None else saved["policy"]
                rank_zero_warn(
                    f"{type(self).__name__}: the checkpoint's policy for {name} is {found}, the config's "
                    f"{type(policy).__name__}, which begins anew"
                )
