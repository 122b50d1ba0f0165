"""`Network`: the parts of a run's network, under the names that their parameters have in checkpoints.

Notable:
- It is built without a trainer and, on the meta device, without memory: names, shapes and the order of
  parameters of a network can be had from its description alone.
- It only puts the parts together; what runs through them is `OmniModule`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from onn_lightning.modality import Modality
from onn_lightning.nn import AdditivePositions, MoIETrunk, TrunkConfig


class Network(nn.Module):
    """Trunk, positions, and an embedder and a head for every modality that has them.

    Args:
        trunk: shape of the tower.
        modalities: the kinds of data, of different names.
    """

    def __init__(self, trunk: TrunkConfig, modalities: Sequence[Modality]) -> None:
        super().__init__()
        width = trunk.hidden_size
        self.trunk = MoIETrunk(trunk)
        self.positions = AdditivePositions(width, trunk.rope_theta, trunk.yarn)
        self.embedders = nn.ModuleDict({m.name: m.build_embedder(width) for m in modalities})
        heads = {m.name: m.build_head(width) for m in modalities}
        self.heads = nn.ModuleDict({name: head for name, head in heads.items() if head is not None})
        for name, head in self.heads.items():
            tie_weights = getattr(head, "tie_weights", None)
            if callable(tie_weights):
                tie_weights(self.embedders[name])
