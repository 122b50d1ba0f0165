"""Small runs with sharded weights, whose global batches are the same for any number of ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from monitored import batch_of
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset
from toy import ByteText, Patches

from onn_lightning import OmniModule
from onn_lightning.batch import Batch
from onn_lightning.callbacks import PIMonitor
from onn_lightning.callbacks.durable_io import DurableCheckpointIO
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import MuonAdamW

ROWS, STEPS, BROKEN_AT = 4, 4, 2
TRUNK = TrunkConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24)


def make_module() -> OmniModule:
    """A module with a Muon part and an Adam part in its optimizer."""
    torch.manual_seed(0)
    module = OmniModule(TRUNK, [ByteText(), Patches()], optimizer=MuonAdamW, warmup_steps=1, w_kl=0.0)
    torch.nn.init.normal_(module.heads["patch"].projection.weight, std=0.1)  # 3 rows: one of 4 ranks has none
    return module


def batches(groups: int) -> list[Batch]:
    """Those of all groups of ranks and steps in turns, every row as long as any other."""
    found = []
    for step in range(STEPS):
        rows = [
            [
                [
                    ("patch", [0.1 * row, 0.2, -0.3, 0.1 * step, 0.5, 0.6]),
                    ("text", chr(97 + row + 4 * step) * 3),
                ]
            ]
            for row in range(ROWS)
        ]
        share = ROWS // groups
        found += [batch_of(*rows[rank * share : (rank + 1) * share]) for rank in range(groups)]
    return found


class Share(IterableDataset[Batch]):
    """A rank's batches from some step on; as long as if it were all of them.

    Args:
        groups: how many groups of ranks read different batches.
        skip: steps that are done.
    """

    def __init__(self, groups: int, skip: int) -> None:
        self.groups, self.skip = groups, skip

    def __iter__(self) -> Iterator[Batch]:
        group = dist.get_rank() * self.groups // dist.get_world_size()
        yield from batches(self.groups)[group :: self.groups][self.skip :]

    def __len__(self) -> int:
        return STEPS


class Watch(Callback):
    """Keeps every step's loss over all ranks, and what was there when training began; saves at a step."""

    def __init__(self, save_to: Path | None = None) -> None:
        self.losses: list[float] = []
        self.began_with: dict[str, Any] = {}
        self.save_to = save_to

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began_with = everything(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach().clone()
        dist.all_reduce(loss)
        self.losses.append(float(loss) / trainer.world_size)
        if self.save_to is not None and trainer.global_step == BROKEN_AT:
            trainer.save_checkpoint(self.save_to)
            there = everything(trainer)
            if trainer.is_global_zero:
                torch.save(there, self.save_to.with_suffix(".expected"))


def whole(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and optimizer state, gathered; a collective call."""
    named = dict(trainer.lightning_module.state_dict())
    optimizer = trainer.optimizers[0]
    for number, state in optimizer.state_dict()["state"].items():
        named |= {f"{number}.{key}": value for key, value in state.items()}
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in named.items()
    }


def everything(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint of this moment must bring back; a collective call."""
    monitor = next(callback for callback in trainer.callbacks if isinstance(callback, PIMonitor))
    (scheduler,) = (config.scheduler for config in trainer.lr_scheduler_configs)
    return {
        "tensors": whole(trainer),
        "monitor": monitor.state_dict(),
        "learning rates": scheduler.get_last_lr(),
        "step": trainer.global_step,
    }


def train(
    folder: Path,
    world_size: int,
    strategy: Any,
    checkpoint: Path | None = None,
    save_to: Path | None = None,
) -> tuple[Watch, Trainer]:
    """Train on this process's part; from the beginning, or on from a checkpoint."""
    watch = Watch(save_to)
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_RANK": os.environ["RANK"]}  # Lightning clears them
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        max_steps=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PIMonitor(), watch],
        plugins=[DurableCheckpointIO()],
    )
    groups = getattr(strategy, "_data_parallel_size", world_size)
    data = Share(groups, 0 if checkpoint is None else BROKEN_AT)
    trainer.fit(make_module(), DataLoader(data, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    return watch, trainer
