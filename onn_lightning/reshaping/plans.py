"""Plans: the few ways in which a network is reshaped, each a `Reshaping`.

Notable:
- A plan says only which old part each new part continues. That the function stays what it was follows from
  how parts are continued, see `onn_lightning.reshaping.origins`.
- Blocks are counted from 0, from the embedding to the heads, in the network as it is before the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onn_lightning.modality import Modality
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping.plan import Reshaping


def widen(trunk: TrunkConfig, sizes: Mapping[int, int]) -> Reshaping:
    """Give feed-forwards more neurons.

    Args:
        trunk: shape of the old trunk.
        sizes: new number of `moie.up` neurons by block.
    Raises:
        ValueError: for a block that is not there, or a size that is not larger than the present one.
    """
    _check_blocks(trunk, sizes, "widen")
    present = trunk.feed_forward_sizes
    for block, size in sizes.items():
        if size <= present[block]:
            raise ValueError(
                f"cannot widen block {block} from {present[block]} to {size} neurons: give a larger size "
                "(`onn prune` removes neurons)"
            )
    neurons = [_continued(old, sizes.get(block, old)) for block, old in enumerate(present)]
    return _reshaping(trunk, range(trunk.num_layers), neurons)


def add_blocks(trunk: TrunkConfig, count: int, at: int) -> Reshaping:
    """Put new blocks between, before or behind those that there are.

    Args:
        trunk: shape of the old trunk.
        count: new blocks, each of the feed-forward size of the block that it stands before (of the last one
            at the end).
        at: number that the first of them gets; 0: before all others, `trunk.num_layers`: behind them.
    Raises:
        ValueError: for a count below 1 or a place that is not there.
    """
    if count < 1:
        raise ValueError(f"cannot add {count} blocks: give a number of at least 1")
    if not 0 <= at <= trunk.num_layers:
        raise ValueError(
            f"cannot add blocks at {at}: the trunk has {trunk.num_layers} blocks, so places are "
            f"0..{trunk.num_layers}"
        )
    sizes = trunk.feed_forward_sizes
    size = sizes[min(at, len(sizes) - 1)]
    neurons = [_continued(old, old) for old in sizes]
    neurons[at:at] = [_continued(0, size)] * count
    blocks = list(range(trunk.num_layers))
    blocks[at:at] = [-1] * count
    return _reshaping(trunk, blocks, neurons)


def keep_neurons(trunk: TrunkConfig, kept: Mapping[int, Tensor]) -> Reshaping:
    """Remove all feed-forward neurons of some blocks but those named.

    The function stays what it was only where the removed ones never fire.

    Args:
        trunk: shape of the old trunk.
        kept: by block the numbers of the `moie.up` neurons that stay, [F'] in the order they are to have.
    Raises:
        ValueError: for a block or neuron that is not there, one named twice, or a block left without any.
    """
    _check_blocks(trunk, kept, "prune")
    neurons = []
    for block, old in enumerate(trunk.feed_forward_sizes):
        origins = torch.as_tensor(kept.get(block, torch.arange(old))).to("cpu", torch.int64)
        if origins.ndim != 1 or not len(origins):
            raise ValueError(
                f"block {block} must keep at least one of its {old} neurons, as a list of numbers"
            )
        if origins.min() < 0 or origins.max() >= old or len(origins.unique()) != len(origins):
            raise ValueError(
                f"the neurons that block {block} keeps must be different numbers in 0..{old - 1}"
            )
        neurons.append(origins)
    return _reshaping(trunk, range(trunk.num_layers), neurons)


def extend_tables(trunk: TrunkConfig, modalities: Mapping[str, Modality]) -> Reshaping:
    """Put modalities with larger tables (more characters, more words) in the place of those there are.

    Args:
        trunk: shape of the trunk, which stays as it is.
        modalities: the new ones by name; what their tables continue is theirs to say, see
            `Modality.table_origins`.
    """
    neurons = [_continued(old, old) for old in trunk.feed_forward_sizes]
    plan = _reshaping(trunk, range(trunk.num_layers), neurons)
    return dataclasses.replace(plan, trunk=trunk, modalities=dict(modalities))


def _continued(old: int, new: int) -> Tensor:
    """[new] origins: all old neurons, then new ones."""
    return torch.cat((torch.arange(old), torch.full((new - old,), -1)))


def _reshaping(trunk: TrunkConfig, blocks: Sequence[int], neurons: Sequence[Tensor]) -> Reshaping:
    sizes = [len(origins) for origins in neurons]
    new = dataclasses.replace(
        trunk, num_layers=len(blocks), intermediate_size=sizes[0] if len(set(sizes)) == 1 else sizes
    )
    return Reshaping(new, tuple(blocks), tuple(neurons))


def _check_blocks(trunk: TrunkConfig, blocks: Mapping[int, object], verb: str) -> None:
    if not blocks:
        raise ValueError(f"nothing to {verb}: name at least one block")
    for block in blocks:
        if not 0 <= block < trunk.num_layers:
            raise ValueError(
                f"cannot {verb} block {block}: the trunk has {trunk.num_layers} blocks, numbered "
                f"0..{trunk.num_layers - 1}"
            )
