"""`NeuronProtection`: plasticity a neuron; what did not fire in a step is not touched by that step.

Notable:
- The rows of a neuron that fired for no token of the step (all micro-batches and ranks together) keep every
  bit, in the weights and in the optimizer's state: no momentum, no weight decay, no KL pull reaches them. So
  a step changes no more than it used, and what neurons learned of other material is not forgotten.
- A neuron without firing has no gradient but the KL's: under protection it stays what it is until it fires.
- Rows of embedding tables that no token read rest alike if asked (`tables`). Tables that a head is tied to
  get a gradient in every row and are passed over.
- Every rank has the same vitals, so the same rows move everywhere; nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from onn_lightning.callbacks.pi_monitor import PIMonitor, ReadsVitals
from onn_lightning.module import OmniModule
from onn_lightning.optim import MovesFiringRows, rows_with_gradient
from onn_lightning.regulation.vitals import Vitals


class NeuronProtection(ReadsVitals):
    """Lets every optimizer step move the rows of the neurons that fired alone; logs `train/firing_rows`.

    `train/firing_rows` is the share of the neurons whose rows move, at the trainer's logging rhythm.

    Args:
        tables: protect the rows of embedding tables that no token of the step read, too: writes of what
            changed become small, but tables learn less from the same text without momentum's tail (measured:
            2 % more bits per byte, `benchmarks/regulation.py --part continual`).
        min_activation: a neuron counts as firing only where its activation in the step is at least this
            fraction of its activation over its lifetime; 0: wherever it fired at all.
    Raises:
        ValueError: for a negative `min_activation`.
    """

    def __init__(self, tables: bool = False, min_activation: float = 0.0) -> None:
        if not min_activation >= 0:
            raise ValueError(f"NeuronProtection: min_activation is {min_activation}, it must be at least 0")
        self.tables, self.min_activation = tables, min_activation
        self._neurons: list[list[nn.Parameter]] = []  # of every SBL in turn, all with one row a neuron

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the optimizer can do it, and find the neurons' rows.

        Raises:
            MisconfigurationException: if it cannot leave rows alone.
        """
        for optimizer in trainer.optimizers:
            if not isinstance(optimizer, MovesFiringRows):
                raise MisconfigurationException(
                    f"NeuronProtection: {type(optimizer).__name__} moves whole tensors. Choose "
                    "onn_lightning.optim.NeuronAdamW or onn_lightning.optim.MuonAdamW as the model's "
                    "optimizer, or leave NeuronProtection out of trainer.callbacks"
                )
        assert isinstance(pl_module, OmniModule)
        self._neurons = [list(layer.parameters(recurse=False)) for _, layer in pl_module.trunk.sbl_layers()]

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Tell the optimizer which rows it may move."""
        assert isinstance(pl_module, OmniModule) and isinstance(optimizer, MovesFiringRows)
        if pl_module.vitals is None:
            return
        fired = self._fired(trainer, pl_module.vitals)
        masks = fired.split([len(parameters[0]) for parameters in self._neurons])
        firing: dict[nn.Parameter, Tensor] = {}
        for parameters, mask in zip(self._neurons, masks, strict=True):
            firing |= dict.fromkeys(parameters, mask)
        if self.tables:
            firing |= {table: rows_with_gradient(gradient) for table, gradient in _read_tables(pl_module)}
        optimizer.set_firing(firing)
        if PIMonitor.logs_now(trainer):
            pl_module.log("train/firing_rows", fired.mean(dtype=torch.float32))

    def _fired(self, trainer: Trainer, vitals: Vitals) -> Tensor:
        """bool [N]: the neurons that count as firing."""
        activation = vitals.neuron_activation
        fired = activation > 0
        if self.min_activation == 0:
            return fired
        monitor = PIMonitor.of(trainer)
        lifetime = None if monitor is None else monitor.lifetime_activation
        if lifetime is None:
            return fired
        return fired & (activation >= self.min_activation * lifetime.to(activation))


def _read_tables(module: OmniModule) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """(table, gradient) of every embedding table but those that a head is tied to."""
    tied = set(module.heads.parameters())
    for layer in module.embedders.modules():
        if isinstance(layer, nn.Embedding):
            table: nn.Parameter = layer.weight  # type: ignore[assignment]
            if table.grad is not None and table not in tied:
                yield table, table.grad
