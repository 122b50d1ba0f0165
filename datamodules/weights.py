"""`MixtureWeights`: how much of each source is mixed in, changeable while training runs.

Notable:
- The config says where the weights begin; a checkpoint brings back what they have become. Where the
  config was edited in between, the config counts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


class MixtureWeights:
    """Shares of the tokens of the training mixture, relative to each other.

    Args:
        configured: weight of each source as the config has it.
    """

    def __init__(self, configured: Mapping[str, float]) -> None:
        self._configured = dict(configured)
        self._current = dict(configured)

    @property
    def by_name(self) -> dict[str, float]:
        """The weights now."""
        return dict(self._current)

    @property
    def in_order(self) -> tuple[float, ...]:
        """The weights now, in the order of the sources."""
        return tuple(self._current.values())

    def update(self, changes: Mapping[str, float]) -> None:
        """Change some or all of them.

        Raises:
            ValueError: for an unknown source, a weight that is negative or not a number, or if nothing
                would be left to mix.
        """
        unknown = sorted(set(changes) - set(self._current))
        if unknown:
            raise ValueError(
                f"mixture weights name {unknown}, the training sources are {list(self._current)}"
            )
        for name, weight in changes.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise ValueError(f"mixture weight of '{name}' must be a number, got {weight!r}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"mixture weight of '{name}' must be finite and at least 0, got {weight}")
        changed = self._current | {name: float(weight) for name, weight in changes.items()}
        if not any(changed.values()):
            raise ValueError("all mixture weights would be 0: leave at least one source in the mixture")
        self._current = changed

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"configured": dict(self._configured), "current": dict(self._current)}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go on with the weights of a checkpoint over the same sources.

        Returns:
            Whether they are in force; False: the config was edited since, and counts.
        """
        if state["configured"] != self._configured:
            log.info("mixture weights were edited since the checkpoint: going on with %s", self._configured)
            return False
        self._current = {name: state["current"][name] for name in self._configured}
        return True
