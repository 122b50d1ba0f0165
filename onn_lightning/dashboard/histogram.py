"""Histograms of samples, in the form in which TensorBoard's `add_histogram_raw` takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 64


@dataclass(frozen=True)
class Histogram:
    """Counts of values between equally spaced limits.

    Args:
        low, high: smallest and largest value.
        number: of values.
        total, total_of_squares: sums over the values.
        limits: [BINS] upper limits of the bins.
        counts: [BINS] values in each.
    """

    low: float
    high: float
    number: int
    total: float
    total_of_squares: float
    limits: list[float]
    counts: list[float]


def histogram(values: NDArray[np.floating]) -> Histogram | None:
    """Count the finite values; None where there are none.

    Args:
        values: of any shape.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        return None
    counts, edges = np.histogram(values, bins=BINS)
    return Histogram(
        float(values.min()),
        float(values.max()),
        values.size,
        float(values.sum()),
        float(np.square(values).sum()),
        edges[1:].tolist(),
        counts.astype(float).tolist(),
    )
