"""Numbers, times and sizes as a person reads them."""

from __future__ import annotations

import math
from datetime import datetime

_SIZES = ("B", "kB", "MB", "GB", "TB")
_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def figure(value: float) -> str:
    """Four digits of a measured number."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def count(number: int) -> str:
    """A whole number; a large one also in short."""
    for size, letter in _LARGE:
        if number >= size:
            return f"{number:,} ({number / size:.3g} {letter})"
    return f"{number:,}"


def share(fraction: float) -> str:
    """A fraction in percent."""
    return f"{fraction:.1%}" if math.isfinite(fraction) else figure(fraction)


def size(num_bytes: int) -> str:
    """Of a file."""
    amount, unit = float(num_bytes), 0
    while amount >= 1000 and unit < len(_SIZES) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.3g} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """A time that something took."""
    if not math.isfinite(seconds):
        return figure(seconds)
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def moment(seconds: float) -> str:
    """A point in time, in the time zone of this machine."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    except (OverflowError, OSError, ValueError):
        return f"{figure(seconds)} s"
