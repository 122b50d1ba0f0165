"""`FeatureNumbers`: features summed up, for a modality that shows nothing better."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FeatureNumbers:
    """Shape, type and statistics of features.

    Args:
        shape: [n, ...].
        dtype: name of the type.
        mean, std, low, high: of all numbers.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, features: Tensor) -> FeatureNumbers:
        """Sum up at least one number."""
        values = features.double()
        return cls(
            tuple(features.shape),
            str(features.dtype).removeprefix("torch."),
            float(values.mean()),
            float(values.std(correction=0)),
            float(values.min()),
            float(values.max()),
        )

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return (
            f"{shape} {self.dtype}, mean {self.mean:.3g}, standard deviation {self.std:.3g}, "
            f"{self.low:.3g} to {self.high:.3g}"
        )
