"""A moving average that knows its age and passes over broken figures.

Notable:
- Exponential, with bias correction: after the first figure it is that figure, not a fraction of it.
- Its memory is stated as a half-life in steps: what was seen that long ago counts half.
- A figure marked as not valid leaves the state bit for bit as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Exponential moving average of a scalar or of a vector.

    Args:
        half_life: steps, > 0.
        shape: of the figures.
    Raises:
        ValueError: if half_life is not above 0.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, half_life: float, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        if not half_life > 0:
            raise ValueError(f"half_life is {half_life}: it is a number of steps above 0")
        self.keep = 0.5 ** (1 / half_life)
        self.register_buffer("total", torch.zeros(shape))
        self.register_buffer("weight", torch.zeros(shape))

    @property
    def value(self) -> Tensor:
        """The average; 0 before the first figure."""
        return self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)

    def update(self, figure: Tensor, valid: Tensor) -> Tensor:
        """Take a figure in where `valid`, and return the average.

        Args:
            figure: of the average's shape; anything where it is not valid.
            valid: bool, of the average's shape or a scalar.
        """
        taken = self.keep * self.total + (1 - self.keep) * figure
        self.total.copy_(torch.where(valid, taken, self.total))
        self.weight.copy_(torch.where(valid, self.keep * self.weight + (1 - self.keep), self.weight))
        return self.value
