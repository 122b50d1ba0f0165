"""Checkpoints of a run, the end of training among them."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint whose `last.ckpt` also holds the very end of training.

    Lightning's own saves at its rhythm only: of a run of seven minutes with a checkpoint every five, the last
    two would be lost.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what no checkpoint holds yet."""
        if self.save_last and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
