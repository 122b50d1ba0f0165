"""What a plan does, in one line."""

from __future__ import annotations

from collections.abc import Mapping

from onn_lightning.modality import Modality
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping.plan import Reshaping


def summarize(trunk: TrunkConfig, modalities: Mapping[str, Modality], plan: Reshaping) -> str:
    """One line for a history.

    Args:
        trunk: shape of the old trunk.
        modalities: those so far, by name.
        plan: what is done.
    """
    before, after = trunk.feed_forward_sizes, plan.trunk.feed_forward_sizes
    changed = [
        f"feed-forward of block {number} from {before[block]} to {after[number]} neurons"
        for number, block in enumerate(plan.blocks)
        if block >= 0 and before[block] != after[number]
    ]
    added = [str(number) for number, block in enumerate(plan.blocks) if block < 0]
    if added:
        changed.append(f"new block{'s' * (len(added) > 1)} {', '.join(added)} of {len(plan.blocks)}")
    removed = sorted(set(range(len(before))) - set(plan.blocks))
    if removed:
        changed.append(f"without block{'s' * (len(removed) > 1)} {', '.join(map(str, removed))}")
    for name, modality in plan.modalities.items():
        old, new = modalities[name].fingerprint(), modality.fingerprint()
        changed += [
            f"{key} of {name} from {old.get(key)} to {new[key]}" for key in new if old.get(key) != new[key]
        ]
    return "; ".join(changed) or "nothing"
