"""Vectors with one entry a neuron, in the state of callbacks, carried over with their neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onn_lightning.reshaping.gather import gather

SUFFIX = "_per_neuron"
"""Ending of the names of such vectors."""


def reshape_neuron_vectors(state: Any, origins: Tensor, old_neurons: int, where: str = "callbacks") -> Any:
    """Copy nested plain data, with every vector whose name ends in `_per_neuron` carried over.

    Args:
        state: of all callbacks.
        origins: [N'] the old neuron that each new one continues, -1: a new one, which begins with 0.
        old_neurons: N.
        where: place of `state`, for messages.
    Raises:
        ValueError: if such a vector has not N entries.
    """
    if not isinstance(state, Mapping):
        return state
    return {key: _reshaped(key, value, origins, old_neurons, where) for key, value in state.items()}


def _reshaped(key: Any, value: Any, origins: Tensor, old_neurons: int, where: str) -> Any:
    where = f"{where}.{key}"
    if not (isinstance(key, str) and key.endswith(SUFFIX) and isinstance(value, Tensor)):
        return reshape_neuron_vectors(value, origins, old_neurons, where)
    if value.shape[:1] != (old_neurons,):
        raise ValueError(
            f"cannot reshape: {where} of the checkpoint has shape {tuple(value.shape)}, its trunk has "
            f"{old_neurons} neurons; take a checkpoint of a run whose callbacks fit its trunk"
        )
    return gather(value, origins, None, 0.0)
