"""`StepMeans`: means over the optimizer steps between two loggings.

Notable:
- Steps with figures that are not finite are counted apart: one of them hides nothing of the others.
- The figures are already those of all ranks: nothing is synchronised here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class StepMeans(Metric):
    """Means of some figures.

    Args:
        names: of the figures.
    """

    full_state_update = False
    total: Tensor
    steps: Tensor
    broken: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(sync_on_compute=False)
        self.names = tuple(names)
        self.add_state("total", torch.zeros(len(self.names)), persistent=True)
        self.add_state("steps", torch.zeros(()), persistent=True)
        self.add_state("broken", torch.zeros(()), persistent=True)

    def update(self, figures: Tensor, finite: Tensor) -> None:
        """Add a step.

        Args:
            figures: one for each name.
            finite: scalar bool; otherwise the step only counts as broken.
        """
        self.total += torch.where(finite, figures, 0.0)
        self.steps += finite
        self.broken += ~finite

    def compute(self) -> Tensor:
        """[names + 1]: the means, NaN where all steps were broken, and the number of broken steps."""
        return torch.cat((self.total / self.steps, self.broken[None]))
