"""The weights of a reshaped network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor

from onn_lightning.reshaping import initial
from onn_lightning.reshaping.gather import gather
from onn_lightning.reshaping.origins import BLOCKS, Origin, Reshaped


def reshape_weights(state_dict: Mapping[str, Any], reshaped: Reshaped, seed: int) -> dict[str, Any]:
    """The new `state_dict`; tensors that stay as they are, are shared with the old one.

    Args:
        state_dict: of the old module. What does not belong to the network itself (loss weights, state of
            regulators) stays as it is.
        reshaped: the way from the old network to the new.
        seed: of the random numbers that new parts begin with.
    Raises:
        ValueError: if a tensor of the old network is missing or has another shape.
    """
    before = reshaped.old.state_dict()
    for name, tensor in before.items():
        found = state_dict.get(name)
        if found is None or found.shape != tensor.shape:
            raise ValueError(
                f"cannot reshape: the checkpoint's {name} is "
                f"{'absent' if found is None else tuple(found.shape)}, by its description it has shape "
                f"{tuple(tensor.shape)}; take an intact checkpoint"
            )
    result = {name: value for name, value in state_dict.items() if name not in before}
    values = _Values(state_dict, reshaped, seed)
    made: dict[str, Tensor] = {}  # by their owner's name: tied parameters stay one tensor
    owners = {id(parameter): name for name, parameter in reshaped.new.named_parameters()}
    for name, tensor in reshaped.new.state_dict(keep_vars=True).items():
        owner = owners.get(id(tensor), name)
        if owner not in made:
            made[owner] = values.of(owner, reshaped.origins[owner])
        result[name] = made[owner]
    return result


class _Values:
    def __init__(self, state_dict: Mapping[str, Any], reshaped: Reshaped, seed: int) -> None:
        self._old = state_dict
        self._plan = reshaped.plan
        self._initial = lru_cache(maxsize=1)(self._make_initial)  # a block's parts come one after another
        self._seed = seed

    def of(self, name: str, origin: Origin) -> Tensor:
        if origin.source is None:
            number, _, part = name.removeprefix(BLOCKS).partition(".")
            like = next(value for key, value in self._old.items() if key.startswith(f"{BLOCKS}0."))
            return self._initial(int(number))[part].to(like)
        old: Tensor = self._old[origin.source]
        if origin.is_unchanged:
            return old
        scaled = old if origin.rescaling is None else origin.rescaling.values(old)
        new: Tensor | float = 0.0
        if any(
            origins is not None and bool((origins < 0).any()) for origins in (origin.rows, origin.columns)
        ):
            if name.startswith(BLOCKS):
                number, _, part = name.removeprefix(BLOCKS).partition(".")
                new = self._initial(int(number))[part]
            else:
                new = old.mean(dim=0)  # a new row of a table
        return gather(scaled, origin.rows, origin.columns, new)

    def _make_initial(self, number: int) -> dict[str, Tensor]:
        make = initial.new_block if self._plan.blocks[number] < 0 else initial.new_neurons
        return make(self._plan.trunk, number, self._seed + number)
