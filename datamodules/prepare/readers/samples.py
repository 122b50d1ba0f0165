"""Files of one name that are one document: `x.png` + `x.txt`, perhaps `x.json`; in a folder or a tar shard.

Notable:
- The suffix says what a file is: a medium of some modality, a caption (`.txt`), a record (`.json`).
  Others are not read.
- A record may hold the caption, or `{"items": [...]}` with paths beside it: the way to interleave.
- A caption without media and media without a caption are bad samples: one of the two is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from datamodules.items import BadItemError, decode_text, item_records, parse_json
from datamodules.prepare.readers.builder import DocumentBuilder, Load, text_too_long
from datamodules.prepare.readers.columns import ITEMS
from datamodules.prepare.readers.limits import Limits

MEDIA_SUFFIXES: Mapping[str, Sequence[str]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff"),
}
"""What the built-in modalities open."""

CAPTION, RECORD = ".txt", ".json"


@dataclass(frozen=True)
class SampleLayout:
    """How the files of one name become a document.

    Args:
        order: modalities in reading order; those that are not named are not read.
        context: modalities that are read, never predicted.
        caption_keys: of a record, where there is no `.txt`; the first that it has.
        require_caption: False: media without a caption are documents, too.
        suffixes: by modality, in small letters.
    Raises:
        ValueError: if a modality of `order` has no suffixes, or `context` names one that is not in it.
    """

    order: Sequence[str] = ("image", "audio", "text")
    context: Sequence[str] = ()
    caption_keys: Sequence[str] = ("caption", "text")
    require_caption: bool = True
    suffixes: Mapping[str, Sequence[str]] = field(default_factory=lambda: MEDIA_SUFFIXES)

    def __post_init__(self) -> None:
        unknown = [name for name in self.order if name != "text" and name not in self.suffixes]
        if unknown or not self.order:
            raise ValueError(f"layout: order has {unknown or 'no modality'}; give their `suffixes`")
        if stray := set(self.context) - set(self.order):
            raise ValueError(f"layout: context names {sorted(stray)}, which `order` does not have")

    def modality_of(self, name: str) -> str | None:
        """Which modality a file holds; None: it is no medium that is read."""
        suffix = suffix_of(name)
        return next((each for each in self.order if suffix in self.suffixes.get(each, ())), None)

    def reads(self, name: str) -> bool:
        """Whether a file takes part in a document."""
        return suffix_of(name) in (CAPTION, RECORD) or self.modality_of(name) is not None


def suffix_of(name: str) -> str:
    """The last suffix, in small letters."""
    return PurePosixPath(name).suffix.lower()


def assemble(files: Mapping[str, Load], layout: SampleLayout, limits: Limits) -> DocumentBuilder:
    """Make a document out of the files of one name.

    Args:
        files: by file name, all of them, in order.
        layout: which of them are read, and how.
        limits: of a document.
    Raises:
        BadItemError: if something is missing or cannot be used.
    """
    builder = DocumentBuilder(limits)
    record: dict[str, object] = {}
    for name in (name for name in files if suffix_of(name) == RECORD):
        loaded = parse_json(files[name](limits.record_bytes))
        if not isinstance(loaded, dict):
            raise BadItemError("malformed record", f"'{name}' must be an object")
        record |= loaded
    if ITEMS in record:
        _add_items(builder, record, files)
        return builder
    caption = _caption(files, record, layout, limits)
    media = [name for name in files if layout.modality_of(name)]
    _check_complete(list(files), media, caption, layout)
    for modality in layout.order:
        supervised = modality not in layout.context
        if modality == "text" and caption is not None:
            builder.add_text(caption, supervised)
        for name in media:
            if layout.modality_of(name) == modality:
                builder.add_media(modality, name, files[name], supervised)
    return builder


def _caption(
    files: Mapping[str, Load], record: Mapping[str, object], layout: SampleLayout, limits: Limits
) -> str | None:
    texts = [name for name in files if suffix_of(name) == CAPTION]
    if len(texts) > 1:
        raise BadItemError("malformed record", f"has several captions: {', '.join(texts)}; join them")
    if texts:
        data = files[texts[0]](limits.text_bytes)
        if len(data) > limits.text_bytes:
            raise text_too_long(limits)
        caption = decode_text(data)
        if not caption.strip():
            raise BadItemError("empty caption", f"'{texts[0]}' is blank; write it or remove the sample")
        return caption
    for key in layout.caption_keys:
        found = record.get(key)
        if isinstance(found, str) and found.strip():
            return found
    return None


def _check_complete(
    files: Sequence[str], media: Sequence[str], caption: str | None, layout: SampleLayout
) -> None:
    if not media and list(layout.order) != ["text"]:
        others = [name for name in files if suffix_of(name) not in (CAPTION, RECORD)]
        if others:
            raise BadItemError(
                "unlisted format",
                f"'{others[0]}' is of a format that is not read; convert it, e.g. to PNG or FLAC",
            )
        raise BadItemError(
            "caption without media",
            f"there is no medium beside '{files[0]}'; restore it (files of one name are neighbours in a tar)",
        )
    if caption is None and "text" in layout.order and layout.require_caption:
        raise BadItemError(
            "media without caption",
            f"there is no caption beside '{files[0]}'; write one, or set `layout.require_caption: false`",
        )


def _add_items(builder: DocumentBuilder, record: dict[str, object], files: Mapping[str, Load]) -> None:
    for item in item_records(record):
        if item.form == "path":
            name = PurePosixPath(item.raw).name
            if name != item.raw or name not in files:
                raise BadItemError(
                    "missing media",
                    f"item path '{item.raw}' is none of the files of this sample ({', '.join(files)})",
                )
            builder.add_media(item.modality, name, files[name], item.supervised)
        elif item.form == "text" and item.modality == "text":
            builder.add_text(item.raw, item.supervised)
        else:
            builder.add_value(item.modality, item.raw, item.supervised)


def given(data: bytes) -> Load:
    """The loader of content that is at hand."""
    return partial(_whole, data)


def _whole(data: bytes, room: int) -> bytes:
    return data
