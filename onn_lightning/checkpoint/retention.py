"""`Retention`: which checkpoints of a run stay, and which may go. Pure: no file is touched here.

Notable:
- The newest always stays. What is kept for the hours is kept for good: the first checkpoint at or after
  every full n hours of training, which no later one can take the place of.
- A checkpoint without a score is never among the best, one without a time never kept for an hour: that is
  so for files that are only known by their names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_HOUR = 3600.0


@dataclass(frozen=True)
class Saved:
    """One checkpoint of a run.

    Args:
        name: of its file or folder.
        step: optimizer steps at its moment.
        seconds: of training until then, over all starts of the run; None: not known.
        score: held-out figure of these weights; None: not known.
    """

    name: str
    step: int
    seconds: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Retention:
    """The rule.

    Args:
        keep_last: so many of the newest.
        keep_best: so many of those with the best scores; 0: scores do not matter.
        mode: "min": lower scores are better; "max": higher ones.
        keep_every_hours: one for every so many hours of training, for good; None: none.
    Raises:
        ValueError: if a number is out of range.
    """

    keep_last: int = 1
    keep_best: int = 0
    mode: Literal["min", "max"] = "min"
    keep_every_hours: float | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"keep_last is {self.keep_last}, it must be at least 1: the newest always stays")
        if self.keep_best < 0:
            raise ValueError(f"keep_best is {self.keep_best}, it must be at least 0")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode is '{self.mode}', it must be 'min' or 'max'")
        if self.keep_every_hours is not None and not 0 < self.keep_every_hours < math.inf:
            raise ValueError(f"keep_every_hours is {self.keep_every_hours}, it must be above 0, or None")

    def removable(self, saved: Sequence[Saved]) -> list[Saved]:
        """What may go.

        Args:
            saved: those of one run, oldest first; no name twice.
        """
        staying = {one.name for one in (*saved[-self.keep_last :], *self.best(saved), *self._hourly(saved))}
        return [one for one in saved if one.name not in staying]

    def best(self, saved: Sequence[Saved]) -> list[Saved]:
        """The best, best first; of equal ones the older.

        Args:
            saved: as above.
        """
        scored = [one for one in saved if one.score is not None and not math.isnan(one.score)]
        sign = 1 if self.mode == "min" else -1
        return sorted(scored, key=lambda one: sign * (one.score or 0.0))[: self.keep_best]

    def is_among_best(self, score: float, saved: Sequence[Saved]) -> bool:
        """Whether a checkpoint of this score would be one of the best.

        Args:
            score: of weights that are not saved yet.
            saved: as above.
        """
        candidate = Saved("", -1, score=score)
        return candidate in self.best([*saved, candidate])

    def _hourly(self, saved: Sequence[Saved]) -> list[Saved]:
        if self.keep_every_hours is None:
            return []
        first: dict[int, Saved] = {}
        for one in saved:
            if one.seconds is not None:
                first.setdefault(int(one.seconds // (self.keep_every_hours * _HOUR)), one)
        return [one for period, one in first.items() if period > 0]
