"""`MediaFilter`: drops documents whose images or sounds could not be trained on, or say little.

Notable:
- Every medium is decoded once, by the very modality that a loader will use: what it refuses (damaged, cut
  short, unlisted format, bomb, silence, NaN, too long) is dropped here, with its message as the example.
- Give it the modalities of the run, with their arguments: a longer `max_seconds` there must be one here.
- An image's shape is read off its header before it is decoded; a sound is decoded, measured and handed on.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datatrove.data import Document
from PIL import Image

from datamodules.audio import AudioModality
from datamodules.image import FORMATS, ImageModality
from datamodules.prepare.document import Item, unpack
from datamodules.prepare.records import StepRecord
from datamodules.prepare.step import Filter
from datamodules.waveform import read_waveform
from onn_lightning.modality import BadSampleError, Modality


@dataclass(frozen=True)
class Fault:
    """What is wrong with a medium.

    Args:
        kind: a few words that it is counted by.
        message: which medium, and what exactly.
    """

    kind: str
    message: str


class MediaFilter(Filter):
    """Drops documents with a bad medium.

    Args:
        modalities: what opens the media; items of other modalities are not looked at. None: images and
            sounds as their modalities' defaults have them.
        min_side: least pixels along the shorter side of an image (below, it is an icon or a tracking pixel).
        max_aspect_ratio: longer over shorter side (above, it is a rule or a banner).
        min_seconds: least duration of a sound.
    """

    name = "media"

    def __init__(
        self,
        modalities: list[Modality] | None = None,
        min_side: int = 16,
        max_aspect_ratio: float = 20.0,
        min_seconds: float = 0.1,
    ) -> None:
        super().__init__()
        opened = [ImageModality(), AudioModality()] if modalities is None else modalities
        self.modalities = {modality.name: modality for modality in opened}
        self.min_side, self.max_aspect_ratio = min_side, max_aspect_ratio
        self.min_seconds = min_seconds

    def judge(self, document: Document) -> str | None:
        """Name the kind of the first fault."""
        fault = self.fault(document)
        return None if fault is None else fault.kind

    def process(self, documents: Iterable[Document], record: StepRecord, task: int) -> Iterator[Document]:
        """Judge one by one; the examples hold what exactly is wrong."""
        for document in documents:
            with self.track_time():
                fault = self.fault(document)
            self.stat_update("total", "forwarded" if fault is None else "dropped")
            if fault is None:
                record.kept += 1
                yield document
            else:
                record.drop(fault.kind, document.id, fault.message)

    def fault(self, document: Document) -> Fault | None:
        """The first fault of a document's media, or None."""
        for number, item in enumerate(unpack(document), 1):
            modality = self.modalities.get(item.modality)
            if modality is None or item.text is not None:
                continue
            where = f"item {number}" + (f" ({item.name})" if item.name else "")
            fault = self._fault_of(item, modality)
            if fault is not None:
                return Fault(fault.kind, f"{where}: {fault.message}")
        return None

    def _fault_of(self, item: Item, modality: Modality) -> Fault | None:
        raw: object = item.value if item.media is None else item.media
        try:
            if item.media is not None and isinstance(modality, ImageModality):
                width, height = _image_size(item.media)
                short, long = sorted((width, height))
                if 0 < short < self.min_side:
                    return Fault("image: too small", f"{width} x {height} pixels")
                if short and long > self.max_aspect_ratio * short:
                    return Fault("image: too narrow", f"{width} x {height} pixels")
            if item.media is not None and isinstance(modality, AudioModality):
                waveform = read_waveform(item.media, modality.max_seconds)
                seconds = len(waveform.samples) / waveform.rate
                if seconds < self.min_seconds:
                    return Fault("audio: too short", f"{seconds:.3f} s")
                raw = (waveform.samples, waveform.rate)  # decoded once
            modality.encode(raw)
        except BadSampleError as error:
            return Fault(f"{modality.name}: cannot be used", str(error))
        return None


def _image_size(content: bytes) -> tuple[int, int]:
    """Width and height in the header; zeros where there is none, which the modality will say better."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return image.size
        except Exception:  # a damaged header can make Pillow's readers fail in any way
            return 0, 0
