"""From a document - a list of raw items of any modality - to its encoded segments.

A document is a list of `(modality, raw)` or `(modality, raw, supervised)` items, for example
`[("image", "seven.png"), ("text", "seven")]`. With `supervised=False` an item is context only: it
is read and never predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onn_lightning.batch import Segment
from onn_lightning.modality import BadSampleError, Modality

RawItem = tuple[str, Any] | tuple[str, Any, bool]
Document = Sequence[RawItem]


def encode_document(
    document: Document, modalities: Mapping[str, Modality], closed: bool = True
) -> list[Segment]:
    """Encode every item and add what its modality puts around a document.

    Args:
        document: the raw items, in reading order.
        modalities: the run's modalities by name.
        closed: add the last modality's closing tokens (training); False leaves the document open
            for a continuation (generation).
    Returns:
        The non-empty segments, in order.
    Raises:
        BadSampleError: if an item is damaged or of a modality that the run does not have.
    """
    segments: list[Segment] = []
    supervised = True
    for item in document:
        name, raw = item[0], item[1]
        supervised = item[2] if len(item) == 3 else True
        if name not in modalities:
            raise BadSampleError(
                f"document has an item of modality '{name}', the run has {sorted(modalities)}: add the "
                "modality to the config or drop the item"
            )
        segment = modalities[name].encode(raw)
        segments.append(segment if supervised else segment.without_loss())
    if document:
        opening = modalities[document[0][0]].opening_segment()
        if opening is not None:
            segments.insert(0, opening.without_loss())
        closing = modalities[document[-1][0]].closing_segment() if closed and supervised else None
        if closing is not None:
            segments.append(closing)
    return [segment for segment in segments if len(segment)]
