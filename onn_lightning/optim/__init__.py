"""Parameter groups, and optimizers chosen by class path; torch only, no Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from onn_lightning.optim.groups import parameter_groups
from onn_lightning.optim.muon_adamw import MuonAdamW

__all__ = ["MuonAdamW", "default_optimizer", "parameter_groups"]


def default_optimizer(groups: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW with the usual settings of language models."""
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
