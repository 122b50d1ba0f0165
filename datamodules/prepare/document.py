"""A document on its way through the pipeline: datatrove's `Document`, with our interleaved items in it.

Notable:
- `Document.text` is what filters and deduplication read: all text items, joined by blank lines.
  `Document.media` holds media in their compressed form, `metadata["items"]` the reading order.
- Items are the truth: a step that changes a text makes a new document with `pack`.
- The id of a document says where it stands in the corpus (source, file, line), so that messages, drop
  statistics and shards can all name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document, Media, MediaType

_MEDIA_TYPES = {"image": MediaType.IMAGE, "audio": MediaType.AUDIO}
_OTHER_MEDIA = MediaType.DOCUMENT
_BETWEEN_TEXTS = "\n\n"


@dataclass(frozen=True)
class Item:
    """One raw item of a document; exactly one of `text`, `media` and `value` is its data.

    Args:
        modality: "text", "image", "audio" or that of a plug-in.
        text: of a text item.
        media: content of a media file, still compressed.
        value: plain JSON, for modalities whose raw form is numbers.
        supervised: False: read by the model, never predicted.
        name: what the medium is called in messages (a file or member name), "" for others.
    """

    modality: str
    text: str | None = None
    media: bytes | None = None
    value: Any = None
    supervised: bool = True
    name: str = ""


def pack(items: Sequence[Item], document_id: str, source: str) -> Document:
    """Make a pipeline document.

    Args:
        items: in reading order, at least one.
        document_id: where the document stands, e.g. "web: pages.jsonl:17".
        source: name of the source in the config.
    """
    media: list[Media] = []
    order: list[dict[str, Any]] = []
    for item in items:
        entry: dict[str, Any] = {"modality": item.modality, "supervised": item.supervised}
        if item.text is not None:
            entry["text"] = item.text
        elif item.media is not None:
            entry["media"] = len(media)
            kind = _MEDIA_TYPES.get(item.modality, _OTHER_MEDIA)
            media.append(Media(id=item.name, type=kind, url=item.name, media_bytes=item.media))
        else:
            entry["value"] = item.value
        order.append(entry)
    text = _BETWEEN_TEXTS.join(item.text for item in items if item.text is not None)
    return Document(text=text, id=document_id, media=media, metadata={"items": order, "source": source})


def unpack(document: Document) -> list[Item]:
    """The items of a pipeline document, in reading order."""
    items: list[Item] = []
    for entry in document.metadata["items"]:
        medium = document.media[entry["media"]] if "media" in entry else None
        items.append(
            Item(
                modality=entry["modality"],
                text=entry.get("text"),
                media=None if medium is None else medium.media_bytes,
                value=entry.get("value"),
                supervised=entry["supervised"],
                name="" if medium is None else medium.id,
            )
        )
    return items
