"""`Reshaping`: where every part of the new network comes from.

Growth and pruning are the same operation with other origins: a new part has origin -1, a removed one occurs
in no origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from onn_lightning.modality import Modality
from onn_lightning.nn import TrunkConfig


@dataclass(frozen=True)
class Reshaping:
    """A plan from an old network to a new one.

    Args:
        trunk: shape of the new trunk.
        blocks: for each new block the number of the old block that it continues; -1: a new block.
        neurons: for each new block [F] origins of its feed-forward (`moie.up`) neurons among those of the old
            block; -1: a new neuron. Of a new block all are -1.
        modalities: the new modalities where tables were extended, by name; others stay as they are.
    """

    trunk: TrunkConfig
    blocks: tuple[int, ...]
    neurons: tuple[Tensor, ...]
    modalities: Mapping[str, Modality] = field(default_factory=dict)
