"""`plan_pruning`: which neurons go so that a network fits a budget - the emergency brake.

Why only neurons of the feed-forwards (`moie.up`, with the columns of `moie.down` that they feed): they are
the only ones that stand for themselves. The neurons of `moie.down` and of `attention.output` are the channels
of the residual stream, which every block reads and writes; those of `attention.qkv` are channels of heads,
which rotary positions pair, and of which all heads have the same number. None of them can go alone.

Notable:
- What goes first: the neurons that fired for the least share of the tokens of their life, over all blocks.
- A neuron that is younger than `min_tokens` is spared: it had no time to prove itself.
- Pruning changes what the network computes. How much, only held-out data tell: see `onn prune`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onn_lightning.modality import Modality
from onn_lightning.nn import MoIETrunk, TrunkConfig
from onn_lightning.reshaping.budget import Budget, Size, measure, outline
from onn_lightning.reshaping.checkpoint import reshape_checkpoint
from onn_lightning.reshaping.plan import Reshaping
from onn_lightning.reshaping.plans import keep_neurons

FIRED, SEEN = "fired_tokens_per_neuron", "seen_tokens_per_neuron"
"""Names of the lifetime counts in the state of the PI monitor."""


class OutOfReachError(ValueError):
    """No pruning that is allowed fits the budget."""


@dataclass(frozen=True)
class Lifetime:
    """The feed-forward neurons of one block; F of them.

    Args:
        activation: [F] fraction of the tokens of its life for which each neuron fired.
        tokens: [F] how many tokens it has seen.
    """

    activation: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Removal:
    """What a plan takes from one block.

    Args:
        block: its number.
        before: neurons that it has.
        neurons: [n] those that go.
        activation: [n] their lifetime activation.
    """

    block: int
    before: int
    neurons: Tensor
    activation: Tensor

    def __str__(self) -> str:
        return (
            f"block {self.block}: {len(self.neurons)} of {self.before} feed-forward neurons go, lifetime "
            f"activation {self.activation.mean():.2%} on average, {self.activation.max():.2%} at most"
        )


def plan_pruning(
    checkpoint: Mapping[str, Any],
    budget: Budget,
    trunk: TrunkConfig,
    modalities: list[Modality],
    min_tokens: int = 100_000,
    min_neurons: int = 32,
) -> Reshaping:
    """Plan which feed-forward neurons go so that a budget holds.

    Args:
        checkpoint: as `description.read` returns it.
        budget: what the network may cost.
        trunk, modalities: of the checkpoint, as `description.restore` returns them.
        min_tokens: neurons that have seen fewer tokens stay.
        min_neurons: every block keeps at least so many.
    Raises:
        OutOfReachError: if no allowed pruning fits the budget; says what the least is.
        ValueError: if the network fits the budget already, or its checkpoint has no lifetime counts.
    """
    lives = lifetimes(checkpoint, trunk)
    bare = outline(checkpoint)
    now = measure(bare, trunk, modalities, budget.row_length)
    if not budget.excess(now):
        raise ValueError(f"nothing to prune, the network fits its budget: {budget.compare(now)}")
    order = _order(lives, min_tokens, max(1, min_neurons))

    def after(count: int) -> tuple[Reshaping, Size]:
        plan = _without(trunk, lives, order[:count])
        pruned = reshape_checkpoint(bare | {"callbacks": {}}, plan, modalities)
        return plan, measure(pruned, plan.trunk, modalities, budget.row_length)

    count, plan, size = 0, None, now
    if order:
        count, (plan, size) = 1, after(1)
        saved = {name: getattr(now, name) - getattr(size, name) for name in budget.excess(now)}
    while (over := budget.excess(size)) and count < len(order):
        count += max(math.ceil(amount / saved[name]) for name, amount in over.items())
        plan, size = after(min(count, len(order)))
    if plan is None or budget.excess(size):
        young = sum(int((life.tokens < min_tokens).sum()) for life in lives)
        raise OutOfReachError(
            f"the budget is out of reach: pruning ends at {budget.compare(size)}. Every block keeps "
            f"{max(1, min_neurons)} neurons, and {young:,} neurons are younger than {min_tokens:,} tokens"
        )
    return plan


def lifetimes(checkpoint: Mapping[str, Any], trunk: TrunkConfig) -> list[Lifetime]:
    """Lifetime activation of the feed-forward neurons of every block.

    Args:
        checkpoint: as `description.read` returns it.
        trunk: shape of its trunk.
    Raises:
        ValueError: if it holds no lifetime counts, or those of another trunk.
    """
    states = (state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, Mapping))
    counts = next((state for state in states if FIRED in state and SEEN in state), None)
    if counts is None:
        raise ValueError(
            "the checkpoint does not hold how often each neuron has fired: that is counted by "
            "onn_lightning.callbacks.PIMonitor (`onn fit` has one by default); train on with it for a while"
        )
    with torch.device("meta"):
        slices = MoIETrunk(trunk).neuron_slices
    fired, seen = counts[FIRED].double().cpu(), counts[SEEN].double().cpu()
    neurons = max(part.stop for part in slices.values())
    if not len(fired) == len(seen) == neurons:
        raise ValueError(
            f"the checkpoint counts how often {len(fired)} neurons have fired, its trunk has {neurons}: take "
            "an intact checkpoint"
        )
    parts = [slices[f"{block}.moie.up"] for block in range(trunk.num_layers)]
    return [Lifetime(fired[part] / seen[part].clamp_min(1), seen[part]) for part in parts]


def removals(plan: Reshaping, lives: Sequence[Lifetime]) -> list[Removal]:
    """What a plan takes from each block, blocks that stay as they are left out.

    Args:
        plan: of `plan_pruning`.
        lives: of `lifetimes`.
    """
    found = []
    for block, (kept, life) in enumerate(zip(plan.neurons, lives, strict=True)):
        goes = torch.ones(len(life.activation), dtype=torch.bool)
        goes[kept] = False
        if goes.any():
            found.append(Removal(block, len(goes), goes.nonzero().flatten(), life.activation[goes]))
    return found


def _order(lives: Sequence[Lifetime], min_tokens: int, min_neurons: int) -> list[tuple[int, int]]:
    """(block, neuron) of all that may go, the one to go first in front."""
    candidates: list[tuple[float, int, int]] = []
    for block, life in enumerate(lives):
        ranked = torch.argsort(life.activation, stable=True)
        old_enough = ranked[life.tokens[ranked] >= min_tokens]
        may_go = old_enough[: max(0, len(ranked) - min_neurons)]
        candidates += [(float(life.activation[neuron]), block, int(neuron)) for neuron in may_go]
    return [(block, neuron) for _, block, neuron in sorted(candidates)]


def _without(trunk: TrunkConfig, lives: Sequence[Lifetime], removed: Sequence[tuple[int, int]]) -> Reshaping:
    kept = {}
    for block in {block for block, _ in removed}:
        stays = torch.ones(len(lives[block].activation), dtype=torch.bool)
        stays[[neuron for number, neuron in removed if number == block]] = False
        kept[block] = stays.nonzero().flatten()
    return keep_neurons(trunk, kept)
