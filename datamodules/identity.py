"""What a place in the data stands on: the settings and sources that decide which piece has which number.

Notable:
- A place is numbers; over other data, another order or another cutting they would mean other pieces. So
  a checkpoint also holds what they stand on, and a resume over anything else is refused with both
  values named.
- A followed source may have grown since; only what was there must still be there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.places import ReaderPlace
from datamodules.sources import Source
from datamodules.stream import TrainStream

_FOLLOWED = "followed"
_ABSENT = "absent"


def identity_of(stream: TrainStream) -> dict[str, Any]:
    """The settings and sources of a stream, as plain data."""
    return {
        "settings": {
            "seed": stream.seed,
            "row_length": stream.read.row_length,
            "max_pixels_per_batch": stream.read.max_pixels,
        },
        "documents": {
            name: _FOLLOWED if source.follows else source.fingerprint()
            for name, source in stream.sources.items()
        },
        "modalities": {name: modality.fingerprint() for name, modality in stream.read.modalities.items()},
    }


def check_identity(saved: Mapping[str, Any], stream: TrainStream) -> None:
    """Refuse to go on from a place of another stream.

    Raises:
        ValueError: naming the first difference.
    """
    here = identity_of(stream)
    for name, value in here["settings"].items():
        _compare(name, saved["settings"].get(name), value)
    for name in [*saved["documents"], *here["documents"]]:
        _compare(f"documents of source '{name}'", *_both(saved["documents"], here["documents"], name))
    if list(saved["documents"]) != list(here["documents"]):
        _compare("the order of sources", list(saved["documents"]), list(here["documents"]))
    for name, settings in here["modalities"].items():
        # an argument that only one of two versions knows is at its default: nothing to compare
        for setting in settings.keys() & saved["modalities"].get(name, {}).keys():
            _compare(f"{setting} of modality '{name}'", saved["modalities"][name][setting], settings[setting])


def check_followed(places: Sequence[ReaderPlace], sources: Mapping[str, Source]) -> None:
    """Refuse to go on where documents of a followed source have vanished.

    Raises:
        ValueError: naming the source.
    """
    for name, source in sources.items():
        if not source.follows:
            continue
        source.refresh()
        place = max((place.sources[name] for place in places), key=lambda place: place.documents)
        known = place.documents
        ends = source.block_ends
        if known and (known > len(source) or ends[bisect_left(ends, known)] != known):
            raise ValueError(
                f"cannot resume the data stream: source '{name}' had {known} documents when the checkpoint "
                f"was written, now it has {len(source)} in {len(ends)} part(s), and no part ends where "
                "those did: a part was removed or replaced; restore it, or start a new run from the weights"
            )
        if known and source.fingerprint(known) != place.fingerprint:
            raise ValueError(
                f"cannot resume the data stream: the first documents of source '{name}' were "
                f"{place.fingerprint} when the checkpoint was written, now they are "
                f"{source.fingerprint(known)}: a part was replaced, or put before others; restore them, or "
                "start a new run from the weights"
            )


def _both(saved: Mapping[str, Any], here: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    return saved.get(name, _ABSENT), here.get(name, _ABSENT)


def _compare(name: str, saved: Any, here: Any) -> None:
    if saved != here:
        raise ValueError(
            f"cannot resume the data stream: it was saved with {name} = {saved}, now it is {here}; restore "
            "that value, or start a new run from the weights"
        )
