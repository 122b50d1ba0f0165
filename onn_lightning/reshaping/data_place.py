"""The place in the data of a run whose modality was replaced by a larger one.

Notable:
- A data stream refuses to go on where a modality's `fingerprint` is another than the one saved, since its
  places count pieces of documents. With new words alone documents are cut as before: the place stays exact.
- New symbols may make documents shorter, so that pieces of high numbers are no longer there. What waits in
  buffers is then let go, but for the first pieces of documents, and documents read in part are gone on with
  at the same piece number: a buffer's worth of pieces is lost, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onn_lightning.modality import Modality


def follow_modalities(state: Any, modalities: Mapping[str, Modality], cut_anew: bool) -> Any:
    """Copy nested plain data, in which places in the data stand on the new modalities.

    Args:
        state: of the loops, in which Lightning keeps that of the loaders.
        modalities: the new ones by name.
        cut_anew: whether documents may have other tokens than before.
    """
    if isinstance(state, list):
        return [follow_modalities(item, modalities, cut_anew) for item in state]
    if not isinstance(state, Mapping):
        return state
    copied = {key: follow_modalities(value, modalities, cut_anew) for key, value in state.items()}
    identity = copied.get("identity")
    if isinstance(identity, dict) and isinstance(identity.get("modalities"), dict):
        identity["modalities"] = identity["modalities"] | {
            name: modalities[name].fingerprint() for name in identity["modalities"] if name in modalities
        }
        if cut_anew:
            copied["places"] = [_with_pieces_that_are_there(place) for place in copied.get("places", ())]
    return copied


def _with_pieces_that_are_there(place: Mapping[str, Any]) -> dict[str, Any]:
    """A reader's place (`datamodules.places.ReaderPlace`) that names no piece which may be gone."""
    pieces = [piece for piece in zip(*place["buffered"], strict=True) if piece[2] == 0]
    sources = {
        name: source | {"runs": [run for run in source["runs"] if run[2] is None]}
        for name, source in place["sources"].items()
    }
    return {**place, "sources": sources, "buffered": [[piece[part] for piece in pieces] for part in range(3)]}
