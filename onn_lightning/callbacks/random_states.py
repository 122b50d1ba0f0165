"""`RandomStates`: the random generators of every rank, in the checkpoints of a run.

Notable:
- Python's, numpy's and torch's own generators, that of the rank's GPU among them. Generators that belong to
  somebody (the data's) are in the state of their owner.
- They are gathered from all ranks for every save, since one rank writes the file, and are set when training
  begins: nothing that setting up or the sanity check draws in a resumed run is seen later.
- With another number of ranks each rank that was there before has its own states again; ranks that are new
  keep those that the config's seed gave them.
- Plain tensors: a file of them is read without executing anything.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

_STATE = dict[str, Any]


class RandomStates(Callback):
    """Keeps the state of the global random generators; `onn fit` has it by default."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._to_set: list[_STATE] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn which device's generator is this rank's."""
        self._device = trainer.strategy.root_device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set this rank's generators to the states of a checkpoint."""
        if trainer.global_rank < len(self._to_set):
            _set(self._to_set[trainer.global_rank], self._device)
        self._to_set = []

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks; all ranks call it together."""
        own = _states(self._device)
        by_rank = [own]
        if dist.is_available() and dist.is_initialized():
            by_rank = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(by_rank, own)
        return {"by_rank": by_rank}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training begins."""
        self._to_set = state_dict["by_rank"]


def _states(device: torch.device) -> _STATE:
    version, words, gauss = random.getstate()
    kind, numpy_words, place, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    states: _STATE = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "words": torch.from_numpy(np.asarray(numpy_words).astype(np.int64)),
            "rest": [int(place), int(has_gauss), float(cached_gauss)],
        },
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set(states: _STATE, device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    python = states["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    numpy_words = states["numpy"]["words"].numpy().astype(np.uint32)
    np.random.set_state((states["numpy"]["kind"], numpy_words, *states["numpy"]["rest"]))
    if device.type == "cuda" and "cuda" in states:  # a run may go on without its GPU, or with one
        torch.cuda.set_rng_state(states["cuda"], device)
