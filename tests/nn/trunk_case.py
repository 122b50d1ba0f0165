"""A small tower in float64 with random weights and one packed batch, and its two-pass reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from plain_reference import Firing, TwoPass, plain_trunk, randomize, two_pass_gradients
from torch import Tensor

from onn_lightning.nn import MoIETrunk, SBLForm, TrunkConfig, YarnScaling

W_GATE = 0.3
CONFIGS = {
    "normalised": TrunkConfig(hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20),
    "reference form": TrunkConfig(
        hidden_size=12,
        num_layers=2,
        num_heads=3,
        intermediate_size=20,
        sbl=SBLForm(normalized=False, gate=0.0),
    ),
    "grouped keys": TrunkConfig(hidden_size=12, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6),
    "one head of full width": TrunkConfig(hidden_size=12, num_layers=2, num_heads=1),
    "yarn": TrunkConfig(
        hidden_size=12,
        num_layers=1,
        num_heads=1,
        rope_theta=100.0,
        yarn=YarnScaling(4.0, original_max_position=16),
    ),
}


@dataclass(frozen=True)
class Case:
    """A tower with random weights and one packed batch."""

    trunk: MoIETrunk
    x: Tensor
    positions: Tensor
    document_ids: Tensor
    target: Tensor

    def loss(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """A main loss with a gradient at every position but the padding."""
        error = (hidden - self.target[rows]).square().sum(dim=-1)
        return error[self.document_ids[rows] >= 0].mean()

    def plain_loss(self, firings: list[Firing], rows: slice = slice(None)) -> Tensor:
        hidden = plain_trunk(self.trunk, self.x[rows], self.positions[rows], self.document_ids[rows], firings)
        return self.loss(hidden, rows)

    def backward(self, rows: slice = slice(None), scale: float = 1.0) -> Tensor:
        """One forward and one backward pass; returns S of all neurons."""
        output = self.trunk(self.x[rows], self.positions[rows], self.document_ids[rows])
        (scale * (self.loss(output.hidden, rows) + W_GATE * output.auxiliary.gate_handle)).backward()
        return output.auxiliary.surprise.grad

    def reference(self) -> TwoPass:
        return two_pass_gradients(self.trunk, self.plain_loss, W_GATE)


def make_case(config: TrunkConfig) -> Case:
    generator = torch.manual_seed(1)
    trunk = MoIETrunk(config).double()
    randomize(trunk, generator)
    x, target = torch.randn(2, 2, 8, config.hidden_size, generator=generator, dtype=torch.float64)
    document_ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, -1, -1]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 1]])
    return Case(trunk, x, positions, document_ids, target)
