"""The KL term of weights that are shared out over ranks: each rank computes that of its own shards.

Notable:
- The value is that of all weights, the same on every rank. The gradient goes straight to a rank's own shards:
  it is exact there, neither averaged over ranks nor multiplied by their number.
- Nothing is gathered, and no rank does the work of another.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.distributed import _functional_collectives as functional
from torch.distributed.tensor import DTensor

from onn_lightning.nn import SparseBayesianLinear
from onn_lightning.nn.loss import gaussian_kl


def whole_kl(layers: Iterable[SparseBayesianLinear], prior_std: Tensor) -> Tensor:
    """Mean over all weights of KL(N(mu, sigma^2) || N(0, prior_std^2)), in nats; whole or sharded alike.

    Args:
        layers: every SBL.
        prior_std: scalar tensor, the same on all ranks.
    """
    weights = [(layer.mu_weight, layer.sigma_weight) for layer in layers]
    first = weights[0][0]
    if not isinstance(first, DTensor):
        return gaussian_kl(weights, prior_std)
    shards = [(_shard(mu), _shard(sigma)) for mu, sigma in weights]
    share = sum(mu.numel() for mu, _ in shards) / sum(mu.numel() for mu, _ in weights)
    own = gaussian_kl(shards, prior_std) * share
    whole = own.detach()
    for dimension in range(first.device_mesh.ndim):
        whole = functional.all_reduce(whole, "sum", (first.device_mesh, dimension))
    return own + (whole - own.detach())


def _shard(weight: Tensor) -> Tensor:
    assert isinstance(weight, DTensor)
    return weight.to_local()
