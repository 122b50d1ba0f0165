"""Values for a network that was built on the meta device: the very ones that it would have been built with.

Notable:
- A constructor draws its numbers in a fixed order. The generator's state at that moment is kept (`Draws`) and
  the same numbers are drawn again later, block by block, on the CPU: they depend neither on the number of
  ranks nor on the device, and a network built at once from the same seed has the same bits.
- Blocks are ours, and have `reset_parameters`. What stands around them comes from modalities that may be
  anyone's, and is built again by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Draws:
    """Where a network's random numbers came from when it was built: to draw the same ones again."""

    def __init__(self) -> None:
        self.state: Tensor = torch.get_rng_state()
        self.dtype = torch.get_default_dtype()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within it, random numbers on the CPU are those of then; after it, those of before."""
        outside = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.set_rng_state(self.state)
                yield
        finally:
            torch.set_default_dtype(outside)


def is_on_meta(module: nn.Module) -> bool:
    """Whether a module has parameters without values."""
    return any(parameter.is_meta for parameter in module.parameters())


def materialize(module: nn.Module) -> None:
    """Give a module memory on the CPU and initial values, in the order in which its constructor drew them.

    Args:
        module: on the meta device; its parts with parameters have `reset_parameters`.
    """
    module.to_empty(device="cpu")
    for part in module.modules():
        if any(True for _ in part.parameters(recurse=False)):
            part.reset_parameters()  # type: ignore[operator]
