"""The numbers that new parts begin with: as a new network's, but silent.

Notable:
- Randomness comes from a seed of its own; torch's global generator is left as it was.
- A neuron with mu = 0 has the score 0: where a network's thresholds begin at 0 or above, such a neuron would
  never fire and never learn. It then begins with a threshold of -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onn_lightning.nn import TrunkConfig
from onn_lightning.nn.trunk import Block

_GATE = -1.0
_WRITERS = ("attention.output", "moie.down")
"""The SBLs of a block that write to the residual stream."""


def new_block(trunk: TrunkConfig, number: int, seed: int) -> dict[str, Tensor]:
    """The tensors of a block that adds nothing.

    Args:
        trunk: shape of the new trunk.
        number: of the block in it.
        seed: of the random numbers.
    """
    tensors = _fresh(trunk, number, seed)
    for layer in _WRITERS:
        _silence(tensors, layer)
    return tensors


def new_neurons(trunk: TrunkConfig, number: int, seed: int) -> dict[str, Tensor]:
    """The tensors of a block whose `moie.up` neurons put out nothing: to take new neurons from.

    Args: as of `new_block`.
    """
    tensors = _fresh(trunk, number, seed)
    _silence(tensors, "moie.up")
    return tensors


def _fresh(trunk: TrunkConfig, number: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would touch accelerators, too
        block = Block(trunk, trunk.feed_forward_sizes[number])
    return block.state_dict()


def _silence(tensors: dict[str, Tensor], layer: str) -> None:
    tensors[f"{layer}.mu_weight"].zero_()
    tensors[f"{layer}.mu_bias"].zero_()
    gate = tensors[f"{layer}.gate_param"]
    gate.masked_fill_(gate >= 0, _GATE)
