"""Tokens a second, MFU, the share of time spent waiting for data, and peak memory, over all ranks.

Notable:
- Counted from shapes on the host: no step is synchronised for it. At the logging rhythm one gathering of a
  few numbers makes them those of all ranks, and they are logged from the host's memory: Lightning reads in
  every step what the progress bar shows, and would wait for a device there.
- Tokens add up over ranks, MFU is their mean, waiting and memory are those of the rank that has most of it:
  it keeps the others waiting, it runs out first.
- MFU (model FLOPs utilisation, Chowdhery et al. 2022, arXiv 2204.02311) compares with the device's
  bfloat16 or float32 peak where Lightning's table knows it, and with a measured matrix product
  elsewhere (CPU). What gradient checkpointing computes twice counts once.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer

from onn_lightning.batch import Batch
from onn_lightning.callbacks.peak_memory import peak_memory
from onn_lightning.flops import measured_gemm_rate, training_flops
from onn_lightning.module import OmniModule


class Throughput(Callback):
    """Logs how fast and how full a run is every `log_every_n_steps`.

    `train/tokens_per_second`; `train/mfu` and `train/data_wait`, fractions; `train/memory_gb`, 1e9 bytes, see
    `peak_memory`.
    """

    def __init__(self) -> None:
        self._peak = 0.0
        self._step = 0
        self._reset()

    def _reset(self) -> None:
        self._start = self._last_end = time.perf_counter()
        self._tokens, self._flops, self._waited = 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the device's peak and start the clock."""
        device = pl_module.device
        dtype = torch.bfloat16 if "16" in str(trainer.precision) else torch.float32
        known = get_available_flops(device, dtype) if device.type == "cuda" else None
        self._peak = float(known) if known else measured_gemm_rate(device)
        self._step = trainer.global_step
        self._reset()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The time since the last step's end went into loading."""
        self._waited += time.perf_counter() - self._last_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; log at the trainer's rhythm."""
        self._tokens += batch.num_tokens
        assert isinstance(pl_module, OmniModule)
        self._flops += training_flops(pl_module.trunk, pl_module.embedders, pl_module.heads, batch)
        self._last_end = time.perf_counter()
        step = trainer.global_step
        # under accumulation several batches end at the same step
        if step == self._step or step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        self._step = step
        seconds = self._last_end - self._start
        memory = peak_memory(pl_module.device)
        share = pl_module.ranks.size / trainer.world_size  # ranks that share neurons read the same tokens
        own = (
            self._tokens * share / seconds,
            self._flops * share / seconds / self._peak,
            self._waited / seconds,
            memory or 0,
        )
        gathered = pl_module.all_gather(torch.tensor(own, device=pl_module.device))
        assert isinstance(gathered, torch.Tensor)
        tokens, mfu, waited, bytes_used = gathered.view(-1, len(own)).cpu().unbind(dim=1)  # [ranks] each
        figures = {"tokens_per_second": tokens.sum(), "mfu": mfu.mean(), "data_wait": waited.max()}
        if memory is not None:
            figures["memory_gb"] = bytes_used.max() / 1e9
        pl_module.log_dict({f"train/{name}": value for name, value in figures.items()}, prog_bar=True)
        self._reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is no training time."""
        self._reset()
