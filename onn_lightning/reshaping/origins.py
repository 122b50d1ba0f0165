"""From a plan to every single tensor: which old one a new one continues, row by row and column by column.

Why the function stays what it was (see `rescaling` for the factor s):
- A new neuron of `moie.up` has mu = 0: its score is 0, its output w * 0 = 0. Its threshold is below 0, so it
  fires, and its mu receives a gradient from the first step on. The new columns of `moie.down` that it feeds
  have random numbers at their usual scale: so new neurons receive different gradients.
- A new block ends in two SBLs with mu = 0, `attention.output` and `moie.down`: it adds exactly nothing. They
  fire, too, and once their first update is done, the SBLs before them receive gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onn_lightning.modality import Modality
from onn_lightning.network import Network
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping.plan import Reshaping
from onn_lightning.reshaping.rescaling import Multiplied, Rescaling, SoftplusMultiplied

BLOCKS = "trunk.blocks."


@dataclass(frozen=True)
class Origin:
    """What a new tensor continues.

    Args:
        source: name of the old tensor; None: nothing, it is new.
        rows: [rows] the old row that each new one continues, -1: a new row; None: as they were.
        columns: the same of its second dimension.
        rescaling: how the numbers change; None: not at all.
    """

    source: str | None
    rows: Tensor | None = None
    columns: Tensor | None = None
    rescaling: Rescaling | None = None

    @property
    def is_unchanged(self) -> bool:
        """Whether the tensor is the old one, maybe under another name."""
        return (
            self.source is not None and self.rows is None and self.columns is None and self.rescaling is None
        )


@dataclass(frozen=True)
class Reshaped:
    """An old and a new network without numbers (on the meta device), and the way from one to the other.

    Args:
        plan: what is done.
        old: network of the old checkpoint.
        new: network of the new one.
        origins: by name, of every tensor in the new network's `state_dict`.
    """

    plan: Reshaping
    old: Network
    new: Network
    origins: Mapping[str, Origin]


def trace(trunk: TrunkConfig, modalities: Sequence[Modality], plan: Reshaping) -> Reshaped:
    """Find the origin of every tensor.

    Args:
        trunk: shape of the old trunk.
        modalities: those of the old checkpoint.
        plan: what is to be done.
    Raises:
        ValueError: if the plan does not fit the old trunk, or names a modality that is not there.
    """
    _check(trunk, modalities, plan)
    with torch.device("meta"):
        old = Network(trunk, modalities)
        new = Network(plan.trunk, [plan.modalities.get(m.name, m) for m in modalities])
    tables = {
        f"embedders.{m.name}.{table}": rows
        for m in modalities
        if m.name in plan.modalities
        for table, rows in plan.modalities[m.name].table_origins(m).items()
    }
    return Reshaped(plan, old, new, _origins(trunk, plan, old, new, tables))


def _origins(
    trunk: TrunkConfig, plan: Reshaping, old: Network, new: Network, tables: Mapping[str, Tensor]
) -> dict[str, Origin]:
    owners = {id(parameter): name for name, parameter in new.named_parameters()}
    before, after = old.state_dict(keep_vars=True), new.state_dict(keep_vars=True)
    differ = {name for name in before.keys() ^ after.keys() if not name.startswith(BLOCKS)}
    differ |= tables.keys() - after.keys()
    if differ:
        raise ValueError(
            f"cannot reshape: {sorted(differ)} are not in both networks; a modality that takes the place of "
            "another must have the same tables and layers"
        )
    origins = {}
    for name, tensor in after.items():
        owner = owners.get(id(tensor), name)  # of tied parameters the first
        in_block = owner.startswith(BLOCKS)
        origin = _in_block(owner, trunk, plan) if in_block else Origin(owner, rows=tables.get(owner))
        if origin.source is not None:
            _check_shape(name, origin, before[origin.source].shape, tensor.shape)
        origins[name] = origin
    return origins


def _in_block(name: str, trunk: TrunkConfig, plan: Reshaping) -> Origin:
    number, _, part = name.removeprefix(BLOCKS).partition(".")
    block = plan.blocks[int(number)]
    if block < 0:
        return Origin(None)
    source, neurons, size = (
        f"{BLOCKS}{block}.{part}",
        plan.neurons[int(number)],
        trunk.feed_forward_sizes[block],
    )
    if len(neurons) == size and torch.equal(neurons, torch.arange(size)):
        return Origin(source)
    if part.startswith("moie.up."):
        return Origin(source, rows=neurons)
    if part in ("moie.down.mu_weight", "moie.down.sigma_weight"):
        return Origin(source, columns=neurons, rescaling=_rescaling(part, plan.trunk, size, len(neurons)))
    return Origin(source)


def _rescaling(part: str, trunk: TrunkConfig, old: int, new: int) -> Rescaling | None:
    wider = math.sqrt(new / old)
    if old == new:
        return None
    if part.endswith("mu_weight"):
        return Multiplied(1 / wider) if trunk.sbl.normalized else None
    return None if trunk.sbl.normalized else SoftplusMultiplied(wider)


def _check_shape(name: str, origin: Origin, old: torch.Size, new: torch.Size) -> None:
    shape = list(old)
    for dimension, origins in enumerate((origin.rows, origin.columns)):
        if origins is None:
            continue
        if len(origins) and int(origins.max()) >= old[dimension]:
            raise ValueError(
                f"cannot reshape: {name} is to continue row {int(origins.max())} of {origin.source}, which "
                f"has {old[dimension]}"
            )
        shape[dimension] = len(origins)
    if torch.Size(shape) != new:
        raise ValueError(
            f"cannot reshape: {name} has shape {tuple(new)} in the new network, from the old one comes "
            f"{tuple(shape)}; a modality whose tables grow says in `table_origins` what their rows continue"
        )


def neuron_origins(reshaped: Reshaped) -> Tensor:
    """[N'] the old neuron that each new one continues, -1: none; in the order of `neuron_slices`."""
    plan, before = reshaped.plan, reshaped.old.trunk.neuron_slices
    parts = []
    for name, part in reshaped.new.trunk.neuron_slices.items():
        number, _, layer = name.partition(".")
        block = plan.blocks[int(number)]
        size = part.stop - part.start
        if block < 0:
            parts.append(torch.full((size,), -1))
            continue
        within = plan.neurons[int(number)] if layer == "moie.up" else torch.arange(size)
        parts.append(torch.where(within < 0, -1, within + before[f"{block}.{layer}"].start))
    return torch.cat(parts)


def _check(trunk: TrunkConfig, modalities: Sequence[Modality], plan: Reshaping) -> None:
    sizes = trunk.feed_forward_sizes
    if not len(plan.blocks) == len(plan.neurons) == plan.trunk.num_layers:
        raise ValueError(
            f"the plan names {len(plan.blocks)} blocks and neurons of {len(plan.neurons)}, its trunk has "
            f"{plan.trunk.num_layers}"
        )
    for number, (block, neurons) in enumerate(zip(plan.blocks, plan.neurons, strict=True)):
        known = sizes[block] if 0 <= block < len(sizes) else 0
        if block >= len(sizes) or (len(neurons) and int(neurons.max()) >= known):
            raise ValueError(
                f"block {number} of the plan continues block {block} with neurons up to "
                f"{int(neurons.max())}: the old trunk has blocks of {list(sizes)} neurons"
            )
        if len(neurons) != plan.trunk.feed_forward_sizes[number]:
            raise ValueError(
                f"block {number} of the plan has {len(neurons)} origins for "
                f"{plan.trunk.feed_forward_sizes[number]} neurons"
            )
    unknown = set(plan.modalities) - {modality.name for modality in modalities}
    if unknown:
        raise ValueError(
            f"the plan replaces the modalities {sorted(unknown)}, the checkpoint has "
            f"{sorted(modality.name for modality in modalities)}"
        )
