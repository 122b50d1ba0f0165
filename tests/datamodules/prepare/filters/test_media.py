"""Media: good ones pass, each kind of bad one is dropped with its reason and its message."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datatrove.data import Document
from PIL import Image
from torch import nn

from datamodules.audio import AudioModality
from datamodules.image import ImageModality
from datamodules.prepare.document import Item, pack
from datamodules.prepare.filters.media import MediaFilter
from datamodules.prepare.records import StepRecord
from onn_lightning import Modality, Segment
from onn_lightning.modality import BadSampleError

RATE = 8000
SINE = np.sin(np.arange(RATE) * 0.3) * 0.5


def image(size: tuple[int, int] = (64, 48), form: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.arange(size[0] * size[1], dtype=np.uint32).reshape(size[1], size[0]) % 251
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, form)
    return buffer.getvalue()


def sound(samples: np.ndarray, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=form, subtype=subtype)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def with_media(modality: str, content: bytes, name: str = "shard.tar: 7") -> Document:
    items = [Item(modality, media=content, name=name), Item("text", text="a caption")]
    return pack(items, "web: 1", "web")


@pytest.mark.parametrize(
    ("modality", "content"),
    [
        ("image", image()),
        ("image", image(form="JPEG", mode="CMYK")),
        ("image", image(form="GIF", mode="P")),
        ("image", image(form="PNG", mode="I;16")),
        ("image", image((400, 20))),
        ("audio", sound(SINE)),
        ("audio", sound(SINE, "FLAC")),
        ("audio", sound(np.stack([SINE, -SINE / 2], 1), "OGG")),
        ("thermal", b"of a plug-in, not looked at"),
    ],
)
def test_good_media_are_kept(modality: str, content: bytes) -> None:
    assert MediaFilter().judge(with_media(modality, content)) is None


@pytest.mark.parametrize(
    ("modality", "content", "reason", "message"),
    [
        ("image", b"", "image: cannot be used", "empty"),
        ("image", image()[:60], "image: cannot be used", "damaged or cut short"),
        ("image", image((200, 200), form="JPEG")[:3000], "image: cannot be used", "damaged or cut short"),
        ("image", b"%!PS-Adobe-3.0 EPSF-3.0\n", "image: cannot be used", "not a readable"),
        ("image", sound(SINE), "image: cannot be used", "not a readable"),
        ("image", bomb(), "image: cannot be used", "60000|limit"),
        ("image", image((15, 200)), "image: too small", "15 x 200 pixels"),
        ("image", image((421, 20)), "image: too narrow", "421 x 20 pixels"),
        ("audio", sound(SINE)[:-1000], "audio: cannot be used", "cut short"),
        ("audio", sound(np.zeros(0)), "audio: cannot be used", "no samples"),
        ("audio", sound(np.zeros(RATE)), "audio: cannot be used", "silent"),
        ("audio", sound(np.full(RATE, np.nan), subtype="FLOAT"), "audio: cannot be used", "NaN"),
        ("audio", sound(np.tile(SINE, 31)), "audio: cannot be used", "longer than max_seconds=30"),
        ("audio", sound(SINE[:700]), "audio: too short", r"0\.08"),
        ("audio", image(), "audio: cannot be used", "not audio"),
    ],
)
def test_bad_media_are_dropped_with_reason_and_message(
    modality: str, content: bytes, reason: str, message: str
) -> None:
    record = StepRecord("media")
    documents = [with_media(modality, content), with_media("image", image())]
    kept = list(MediaFilter().process(documents, record, task=0))
    assert kept == documents[1:] and record.kept == 1
    assert dict(record.dropped) == {reason: 1}
    (example,) = record.examples[reason]
    assert example["id"] == "web: 1"
    assert example["text"].startswith("item 1 (shard.tar: 7): ")
    assert re.search(message, example["text"])


def test_the_runs_own_modalities_decide() -> None:
    long_clip = with_media("audio", sound(np.tile(SINE, 31)))
    assert MediaFilter([AudioModality(max_seconds=40)]).judge(long_clip) is None
    assert MediaFilter([AudioModality(cut_long=True)]).judge(long_clip) is None
    silent = with_media("audio", sound(np.zeros(RATE)))
    assert MediaFilter([AudioModality(allow_silence=True)]).judge(silent) is None
    huge = with_media("image", image((100, 100)))
    assert MediaFilter([ImageModality(max_pixels=99)]).judge(huge) == "image: cannot be used"
    assert MediaFilter([AudioModality()]).judge(with_media("image", b"damaged")) is None


def test_a_documents_second_medium_is_looked_at_too() -> None:
    items = [Item("image", media=image()), Item("text", text="and"), Item("image", media=b"no image")]
    fault = MediaFilter().fault(pack(items, "web: 2", "web"))
    assert fault is not None and fault.message.startswith("item 3: ")


class Cells(Modality):
    """A modality whose raw form is a list."""

    name = "patch"

    def encode(self, raw: Any) -> Segment:
        if not isinstance(raw, list):
            raise BadSampleError("cells must be a list: drop the document")
        return Segment(self.name, torch.tensor(raw))

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return nn.Identity()

    def build_head(self, hidden_size: int) -> None:
        return None


def test_values_of_a_plug_in_are_checked_by_its_modality() -> None:
    documents = [pack([Item("patch", value=value)], "sensors: 1", "sensors") for value in ([1, 2, 3], "?")]
    reasons = [MediaFilter([Cells()]).judge(document) for document in documents]
    assert reasons == [None, "patch: cannot be used"]


def test_quickstart_media_are_kept() -> None:
    folder = Path(__file__).parents[4] / "data" / "quickstart" / "test"
    files = [*sorted(folder.glob("digits/*.png"))[:20], *sorted(folder.glob("wav/*/*.wav"))[:20]]
    if not files:
        pytest.skip("the quickstart data is not here: onn fetch quickstart")
    for file in files:
        modality = "image" if file.suffix == ".png" else "audio"
        assert MediaFilter().judge(with_media(modality, file.read_bytes(), file.name)) is None
