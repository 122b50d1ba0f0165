"""A small untrained model, and the characters and words of its text."""

from __future__ import annotations

import torch

from onn_lightning import OmniModule
from onn_lightning.modality import Modality
from onn_lightning.nn import TrunkConfig

CHARACTERS = "abcd 人工智能的时代\n"
WORDS = "人工 50\n人工智能 40\n智能 30\n时代 20\nab 10\nabc 9\nbad 5\n"
TRUNK = TrunkConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=32)


def make_module(modalities: list[Modality], trunk: TrunkConfig = TRUNK) -> OmniModule:
    torch.manual_seed(0)
    return OmniModule(trunk, modalities)
