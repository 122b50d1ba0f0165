"""Samples of what the neurons of each kind of SBL are made of, for histograms.

Notable:
- Evenly spaced samples, about `SAMPLES` a kind and figure at most, whatever the size of the network; one
  vector on the training device, so that one copy brings them all to the host.
- Of a sharded parameter the rows of this rank are sampled: nothing here is a collective.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from onn_lightning.nn import MoIETrunk

SAMPLES = 8192
COLUMNS = 32  # of a row of sigma


class Samples:
    """Samples that are on their way to the host.

    Args:
        trunk: whose parameters are sampled.
        per_neuron: further figures, [N] each, by name.
    """

    @torch.no_grad()
    def __init__(self, trunk: MoIETrunk, per_neuron: dict[str, Tensor]) -> None:
        parts = dict(_samples(trunk, per_neuron))
        self._sizes = {tag: len(part) for tag, part in parts.items()}
        self._copy = HostCopy(torch.cat([part.float() for part in parts.values()]))

    @property
    def ready(self) -> bool:
        """Whether the copy has arrived."""
        return self._copy.ready

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The samples by tag, `<figure>/<kind>`; waits for the copy where it has not arrived."""
        bounds = np.cumsum(list(self._sizes.values()))[:-1]
        return dict(zip(self._sizes, np.split(self._copy.array(), bounds), strict=True))


def _samples(trunk: MoIETrunk, per_neuron: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    kinds: dict[str, list[str]] = {}
    for name, _ in trunk.sbl_layers():
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    layers, slices = dict(trunk.sbl_layers()), trunk.neuron_slices
    for kind, names in kinds.items():
        rows = max(1, SAMPLES // len(names))
        gates = [_spread(_local(layers[name].gate_param), rows) for name in names]
        mu_rows = [_spread(_local(layers[name].mu_weight), rows) for name in names]
        raw = [_spread(_local(layers[name].sigma_weight), rows // COLUMNS + 1) for name in names]
        sigmas = [_spread(part.mT, COLUMNS).flatten() for part in raw]
        yield f"gate/{kind}", torch.cat(gates)
        yield f"mu_norm/{kind}", torch.cat([torch.linalg.vector_norm(r, dim=1) for r in mu_rows])
        yield f"sigma/{kind}", F.softplus(torch.cat(sigmas).float())
        for figure, values in per_neuron.items():
            yield f"{figure}/{kind}", torch.cat([_spread(values[slices[name]], rows) for name in names])


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _spread(tensor: Tensor, count: int) -> Tensor:
    """At most `count` evenly spaced entries along the first dimension."""
    return tensor[:: max(1, -(-len(tensor) // count))]


class HostCopy:
    """A copy of a tensor on the host, made without waiting for the device.

    Args:
        tensor: of any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = tensor.detach().to("cpu", copy=True)

    @property
    def ready(self) -> bool:
        """Whether the copy has arrived."""
        return self._arrived is None or self._arrived.query()

    def array(self) -> NDArray:
        """The copy; waits for it where it has not arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()
