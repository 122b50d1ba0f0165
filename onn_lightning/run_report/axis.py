"""An axis of a chart: from values to places, and the numbers that stand beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis.

    Args:
        low, high: values at its ends, low < high, positive where it is logarithmic.
        start, end: places of its ends.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def places(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where values stand."""
        low, high = self._scaled(np.array([self.low, self.high]))
        return self.start + (self._scaled(values) - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About so many round values within the axis, rising."""
        if self.log:
            return self._decades(count)
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _decades(self, count: int) -> list[float]:
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors = (1.0, 2.0, 5.0) if high - low <= 2 else (1.0,)
        every = max(1, -(-(high - low) // count))
        ticks = [factor * 10.0**power for power in range(low, high + 1, every) for factor in factors]
        return [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log10(values) if self.log else values


def value_axis(values: NDArray[np.float64], start: float, end: float, log: bool) -> Axis:
    """The axis for some finite values, with a little room at both ends.

    Args:
        values: all that is drawn.
        start, end: places of its ends.
        log: logarithmic, where they are all positive and span a decade or more.
    """
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if log and low > 0 and high >= 10 * low:
        room = (high / low) ** 0.04
        return Axis(low / room, high * room, start, end, log=True)
    room = 0.05 * (high - low)
    if room <= 1e-9 * max(abs(low), abs(high)):
        room = 0.05 * max(abs(low), abs(high)) or 1.0
    bottom = 0.0 if 0 <= low <= 0.4 * high else low - room  # near enough to 0 to show it
    return Axis(bottom, high + room, start, end)


def tick_label(value: float) -> str:
    """A round value in few characters."""
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * 0.999)
