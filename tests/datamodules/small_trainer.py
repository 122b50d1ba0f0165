"""A Trainer that leaves nothing behind but the steps it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from onn_lightning.batch import Batch


def small_trainer(folder: Path, max_steps: int, **settings: Any) -> Trainer:
    """On the CPU, without logs, bars and checkpoints."""
    return Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **settings,
    )


class OneNumber(LightningModule):
    """A model of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.weight * batch.num_tokens

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)
