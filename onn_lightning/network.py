"""`Network`: the parts of a run's network, under the names that their parameters have in checkpoints.

Notable:
- It is built without a trainer and, on the meta device, without memory: names, shapes and the order of
  parameters of a network can be had from its description alone.
- It only puts the parts together; what runs through them is `OmniModule`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from onn_lightning.modality import Modality
from onn_lightning.nn import AdditivePositions, MoIETrunk, TrunkConfig


@dataclass(frozen=True)
class Surroundings:
    """What stands around the trunk: positions, and embedder and head of every modality that has them."""

    positions: AdditivePositions
    embedders: nn.ModuleDict
    heads: nn.ModuleDict


def surroundings(trunk: TrunkConfig, modalities: Sequence[Modality]) -> Surroundings:
    """Build what stands around a trunk.

    Args:
        trunk: shape of the tower.
        modalities: the kinds of data, of different names.
    """
    width = trunk.hidden_size
    positions = AdditivePositions(width, trunk.rope_theta, trunk.yarn)
    embedders = nn.ModuleDict({m.name: m.build_embedder(width) for m in modalities})
    heads = {m.name: m.build_head(width) for m in modalities}
    made = nn.ModuleDict({name: head for name, head in heads.items() if head is not None})
    for name, head in made.items():
        tie_weights = getattr(head, "tie_weights", None)
        if callable(tie_weights):
            tie_weights(embedders[name])
    return Surroundings(positions, embedders, made)


class Network(nn.Module):
    """Trunk and surroundings.

    Args:
        trunk: shape of the tower.
        modalities: the kinds of data, of different names.
    """

    def __init__(self, trunk: TrunkConfig, modalities: Sequence[Modality]) -> None:
        super().__init__()
        self.trunk = MoIETrunk(trunk)
        around = surroundings(trunk, modalities)
        self.positions, self.embedders, self.heads = around.positions, around.embedders, around.heads
