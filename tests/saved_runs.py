"""Short training runs that save their checkpoints: for tests of saving, in one process and in several."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from growing_runs import TRUNK, data
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from toy import ByteText

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import RandomStates
from onn_lightning.callbacks.durable_io import DurableCheckpointIO


class Noisy(OmniModule):
    """Its loss is multiplied by random numbers of all three generators."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        factor = 1 + torch.rand(()) + random.random() + np.random.rand()
        return super().training_step(batch, batch_idx) * float(factor)


class Weights(Callback):
    """Keeps a copy of the weights after every step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after[trainer.global_step] = {n: v.clone() for n, v in pl_module.state_dict().items()}


class Fails(Callback):
    """Ends training with an error after a step."""

    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after_step:
            raise RuntimeError("the step after which it fails")


def train(
    folder: Path,
    *callbacks: Callback,
    max_steps: int = 6,
    resume: Path | None = None,
    seeds: Sequence[int] = (0, 1),
    **settings: Any,
) -> Trainer:
    """Build everything from the beginning and train.

    Args:
        folder: of the run.
        callbacks: beside the one that keeps random states.
        max_steps: optimizer steps.
        resume: checkpoint to go on from.
        seeds: of the weights, and of what is drawn in training, by rank.
        settings: of the trainer.
    """
    torch.manual_seed(seeds[0])
    module = Noisy(TRUNK, [ByteText()], warmup_steps=2)
    given = {"limit_val_batches": 0, "logger": False, "plugins": [DurableCheckpointIO()]} | settings
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, RandomStates()],
        **given,
    )
    torch.manual_seed(seeds[1] + trainer.global_rank)
    random.seed(seeds[1] + trainer.global_rank)
    np.random.seed(seeds[1] + trainer.global_rank)
    trainer.fit(module, data(), ckpt_path=resume, weights_only=True)
    return trainer
