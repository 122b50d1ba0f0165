"""The place in the data of a run whose modality was replaced by a larger one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onn_lightning.modality import Modality


def follow_modalities(state: Any, modalities: Mapping[str, Modality]) -> Any:
    """Copy nested plain data; name the new modalities where a place in the data says on which it stands.

    A data stream refuses to go on where a modality's `fingerprint` is another than the one saved: its
    places count pieces of documents. A modality that extends tables cuts documents much as before.

    Args:
        state: of the loops, in which Lightning keeps that of the loaders.
        modalities: the new ones by name.
    """
    if isinstance(state, list):
        return [follow_modalities(item, modalities) for item in state]
    if not isinstance(state, Mapping):
        return state
    copied = {key: follow_modalities(value, modalities) for key, value in state.items()}
    identity = copied.get("identity")
    if isinstance(identity, dict) and isinstance(identity.get("modalities"), dict):
        identity["modalities"] = identity["modalities"] | {
            name: modalities[name].fingerprint() for name in identity["modalities"] if name in modalities
        }
    return copied
