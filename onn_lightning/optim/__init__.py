"""Parameter groups, and optimizers that can leave rows alone, chosen by class path; no Lightning here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from onn_lightning.optim.firing import MovesFiringRows, rows_with_gradient
from onn_lightning.optim.groups import parameter_groups
from onn_lightning.optim.muon_adamw import MuonAdamW
from onn_lightning.optim.neuron_adamw import NeuronAdamW

__all__ = [
    "MovesFiringRows",
    "MuonAdamW",
    "NeuronAdamW",
    "default_optimizer",
    "parameter_groups",
    "rows_with_gradient",
]


def default_optimizer(groups: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW with the usual settings of language models, and rows that may rest."""
    return NeuronAdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
