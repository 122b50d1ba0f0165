"""Curves with as many points as can be seen.

Notable:
- The steps of a chart are divided into equal parts, and every part with more than one point becomes one: its
  mean, and beside it the least and the greatest value, so that a spike that lasts one step stays visible.
- What is not finite is counted and marked, and is in no mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e100  # beyond, differences of values are no numbers any more


@dataclass(frozen=True)
class Thinned:
    """A curve as it is drawn.

    Args:
        steps: [P] mean step of each part.
        means, lows, highs: [P] of its finite values.
        broken: [Q] steps at which the value is not finite (or beyond LARGEST), thinned alike.
        num_broken: how many there are.
        num_points: in the curve before.
    """

    steps: NDArray[np.float64]
    means: NDArray[np.float64]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]
    broken: NDArray[np.float64]
    num_broken: int
    num_points: int

    @property
    def has_band(self) -> bool:
        """Whether a point stands for several that differ."""
        return bool((self.highs > self.lows).any())


def thin(
    steps: NDArray[np.float64], values: NDArray[np.float64], first: float, last: float, parts: int
) -> Thinned:
    """Thin a curve.

    Args:
        steps, values: [P] of the curve; steps rise.
        first, last: steps at the ends of the chart.
        parts: into how many it is divided.
    """
    finite = np.abs(values) < LARGEST  # False for NaN
    broken = np.unique(_part(steps[~finite], first, last, parts))
    kept_steps, kept = steps[finite], values[finite]
    if len(kept) <= parts:
        means = lows = highs = kept
    else:
        # the parts begin where the number of the part changes
        starts = np.flatnonzero(np.diff(_part(kept_steps, first, last, parts), prepend=-1))
        counts = np.diff(np.append(starts, len(kept)))
        means = np.add.reduceat(kept, starts) / counts
        lows, highs = np.minimum.reduceat(kept, starts), np.maximum.reduceat(kept, starts)
        kept_steps = np.add.reduceat(kept_steps, starts) / counts
    return Thinned(
        kept_steps,
        means,
        lows,
        highs,
        first + (broken + 0.5) / parts * (last - first),
        int((~finite).sum()),
        len(values),
    )


def _part(steps: NDArray[np.float64], first: float, last: float, parts: int) -> NDArray[np.int64]:
    """[P] number of the part in which each step lies."""
    width = max(last - first, 1e-9)
    return np.clip((steps - first) / width * parts, 0, parts - 1).astype(np.int64)
