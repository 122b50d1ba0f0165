"""`EmergencyPruning`: a run whose network is cut back when it exceeds a budget. Never runs unless configured.

Notable:
- An emergency brake, not a regulator: unlike growth, pruning changes what the network computes. The
  checkpoint of before stays in the run folder, and what was removed is logged as a warning.
- What goes are the feed-forward neurons of least lifetime activation (`onn_lightning.reshaping.pruning`).
- A budget that cannot be met yet, since too many neurons are young, is told, and tried again at the next
  look.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from onn_lightning.callbacks.pi_monitor import PIMonitor
from onn_lightning.callbacks.reshaping import ReshapingCallback
from onn_lightning.checkpoint import description
from onn_lightning.modality import Modality
from onn_lightning.module import OmniModule
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping import Reshaping
from onn_lightning.reshaping.budget import Budget, measure, outline
from onn_lightning.reshaping.pruning import OutOfReachError, lifetimes, plan_pruning, removals

_log = logging.getLogger("lightning.pytorch")


class EmergencyPruning(ReshapingCallback):
    """Prunes the network down to a budget whenever it exceeds it, for example after growth.

    Args:
        parameters: at most so many trained numbers.
        memory: at most so many bytes of weights and optimizer state, as a checkpoint stores them.
        flops: at most so many operations a token in the trunk's forward pass.
        row_length: tokens in a row, for which `flops` are counted.
        min_tokens: neurons that have seen fewer tokens are spared.
        min_neurons: every feed-forward keeps at least so many.
        check_every_n_steps: how often the network is measured; nothing is read from the device for it.
    Raises:
        ValueError: without a limit, or if a number is out of range.
    """

    done = "pruned"

    def __init__(
        self,
        parameters: float | None = None,
        memory: float | None = None,
        flops: float | None = None,
        row_length: int = 512,
        min_tokens: int = 100_000,
        min_neurons: int = 32,
        check_every_n_steps: int = 1000,
    ) -> None:
        super().__init__(check_every_n_steps)
        if min_tokens < 0 or min_neurons < 1:
            raise ValueError(
                f"EmergencyPruning: min_tokens is {min_tokens} (at least 0), min_neurons {min_neurons} (at "
                "least 1)"
            )
        self.budget = Budget(parameters, memory, flops, row_length)
        self.min_tokens, self.min_neurons = min_tokens, min_neurons

    def is_time(self, trainer: Trainer, module: OmniModule) -> bool:
        """Whether the network exceeds its budget, and pruning would help."""
        trunk, modalities = module.trunk.config, list(module.modalities.values())
        now = outline(
            {
                "state_dict": module.state_dict(),
                "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
            }
        )
        if not self.budget.excess(measure(now, trunk, modalities, self.budget.row_length)):
            return False
        monitor = PIMonitor.of(trainer)
        assert monitor is not None  # `setup` has required it
        now["callbacks"] = {monitor.state_key: monitor.state_dict()}
        now[description.KEY] = description.describe(trunk, modalities, module.history)
        try:
            self._plan(now, trunk, modalities)
        except OutOfReachError as error:
            rank_zero_warn(f"EmergencyPruning at step {trainer.global_step:,}: {error}")
            return False
        return True

    def plans(
        self, checkpoint: Mapping[str, Any], trunk: TrunkConfig, modalities: list[Modality]
    ) -> Iterator[Reshaping]:
        """Without the neurons of least lifetime activation."""
        plan = self._plan(checkpoint, trunk, modalities)
        for removal in removals(plan, lifetimes(checkpoint, trunk)):
            _log.warning("EmergencyPruning: %s", removal)
        yield plan

    def _plan(
        self, checkpoint: Mapping[str, Any], trunk: TrunkConfig, modalities: list[Modality]
    ) -> Reshaping:
        return plan_pruning(checkpoint, self.budget, trunk, modalities, self.min_tokens, self.min_neurons)

    def note_done(self) -> None:
        """There is no state to change."""
