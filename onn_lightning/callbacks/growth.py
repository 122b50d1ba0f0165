"""`GrowOnPlateau`: a run whose network grows when it has stopped learning at high activation.

Notable:
- The function is unchanged at the moment of growth (`onn_lightning.reshaping`); what changes is that there
  are new neurons to recruit. Step count, optimizer, place in the data, schedule and logs go on.
- The rule sees every step; what it answers is read from the device every `check_every_n_steps` alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from onn_lightning.callbacks.reshaping import ReshapingCallback
from onn_lightning.modality import Modality
from onn_lightning.module import OmniModule
from onn_lightning.nn import TrunkConfig
from onn_lightning.regulation.plateau import Plateau
from onn_lightning.reshaping import Reshaping, add_blocks, widen
from onn_lightning.reshaping.budget import count_parameters

_MULTIPLE = 32  # sizes of matrices that accelerators like


class GrowOnPlateau(ReshapingCallback):
    """Widens all feed-forwards, adds blocks, or both, whenever its rule fires.

    Args:
        rule: when to grow; None: `Plateau()`.
        widen_by: factor on the size of every feed-forward, rounded up to a multiple of 32; 1: as they are.
        add_blocks: so many new blocks behind the last.
        max_parameters: no growth beyond so many; None: any number.
        max_growths: no more growths than this.
        check_every_n_steps: how often the rule's answer is read; one that came in between counts.
    Raises:
        ValueError: if a number is out of range, or nothing would grow.
    """

    done = "grown"
    keeps_previous = False  # the grown checkpoint computes the same

    def __init__(
        self,
        rule: Plateau | None = None,
        widen_by: float = 1.5,
        add_blocks: int = 0,
        max_parameters: int | None = None,
        max_growths: int = 4,
        check_every_n_steps: int = 100,
    ) -> None:
        super().__init__(check_every_n_steps)
        for name, value, least in (
            ("widen_by", widen_by, 1),
            ("add_blocks", add_blocks, 0),
            ("max_growths", max_growths, 0),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"GrowOnPlateau: {name} is {value}, it must be at least {least}")
        if widen_by == 1 and add_blocks == 0:
            raise ValueError("GrowOnPlateau: nothing would grow: give widen_by above 1, or add_blocks")
        self.rule = rule or Plateau()
        self.widen_by, self.add_blocks = widen_by, add_blocks
        self.max_parameters, self.max_growths = max_parameters, max_growths
        self._growths = 0
        self._fired: Tensor = torch.zeros((), dtype=torch.bool)
        self._told = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The rule's state lies where the vitals are made; it learns which neurons are the feed-forwards'."""
        assert isinstance(pl_module, OmniModule)
        # a copy: ranks spawned on one machine would share the memory of what they were given
        self.rule = copy.deepcopy(self.rule).to(pl_module.device)
        slices = pl_module.trunk.neuron_slices
        feed_forward = torch.zeros(max(part.stop for part in slices.values()), dtype=torch.bool)
        for name, part in slices.items():
            feed_forward[part] = name.endswith(".moie.up")
        self.rule.observe(feed_forward)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Show the step to the rule."""
        assert isinstance(pl_module, OmniModule)
        if pl_module.vitals is not None:
            fired = self.rule(pl_module.vitals)
            self._fired = self._fired.to(fired.device) | fired

    def is_time(self, trainer: Trainer, module: OmniModule) -> bool:
        """Whether the rule has fired since the last time, and growth is allowed."""
        if self._growths >= self.max_growths:
            return False
        fired = bool(self._fired)
        self._fired = torch.zeros_like(self._fired)
        return fired and self._fits(module)

    def _fits(self, module: OmniModule) -> bool:
        trunk = self._plans(module.trunk.config)[-1].trunk
        parameters = count_parameters(trunk, list(module.modalities.values()))
        if self.max_parameters is None or parameters <= self.max_parameters:
            return True
        if not self._told:
            rank_zero_info(
                f"GrowOnPlateau: at a plateau, but with {parameters:,} parameters it would have more than "
                f"max_parameters={self.max_parameters:,}: it stays as it is"
            )
        self._told = True
        return False

    def plans(
        self, checkpoint: Mapping[str, Any], trunk: TrunkConfig, modalities: list[Modality]
    ) -> Iterator[Reshaping]:
        """Wider, then deeper."""
        yield from self._plans(trunk)

    def _plans(self, trunk: TrunkConfig) -> list[Reshaping]:
        plans = []
        if self.widen_by > 1:
            sizes = enumerate(trunk.feed_forward_sizes)
            plans.append(widen(trunk, {block: self._wider(size) for block, size in sizes}))
            trunk = plans[-1].trunk
        if self.add_blocks:
            plans.append(add_blocks(trunk, self.add_blocks, trunk.num_layers))
        return plans

    def _wider(self, size: int) -> int:
        return math.ceil(size * self.widen_by / _MULTIPLE) * _MULTIPLE

    def note_done(self) -> None:
        """One growth more; the rule begins anew."""
        self._growths += 1
        self.rule.restart()

    def state_dict(self) -> dict[str, Any]:
        """Growths so far, and the rule's state, on the CPU."""
        rule = {name: value.cpu().clone() for name, value in self.rule.state_dict().items()}
        return super().state_dict() | {
            "growths": self._growths,
            "fired": self._fired.cpu().clone(),
            "rule": rule,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; a rule whose settings have changed begins anew."""
        super().load_state_dict(state_dict)
        self._growths, self._fired = state_dict["growths"], state_dict["fired"]
        shapes = {name: value.shape for name, value in self.rule.state_dict().items()}
        if shapes == {name: value.shape for name, value in state_dict["rule"].items()}:
            self.rule.load_state_dict(state_dict["rule"])
        else:
            rank_zero_warn("GrowOnPlateau: the rule is another than the checkpoint's: it begins anew")
