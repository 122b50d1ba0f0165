"""Documents whose every token has a number of its own, and a ledger of who was given which.

Notable:
- A target stands for its token: in a document of n tokens, tokens 1 to n - 1 are each predicted exactly
  once, however it is cut. So what was given and what a state says is still to come are compared by them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from datamodules.bad_samples import BadSampleLog
from datamodules.order import mix, row_of
from datamodules.packing import Collator, Piece, prototype_of
from datamodules.places import ReaderPlace
from datamodules.sources import Source
from datamodules.stream import DocumentPieces, TrainStream
from onn_lightning.batch import Batch, Segment
from onn_lightning.document import Document
from onn_lightning.modality import Modality

STRIDE = 1 << 12  # token number = document * STRIDE + place in the document
SOURCE = 1 << 32


class Numbered(Modality):
    """(first number, length) -> that many numbers."""

    name = "text"

    def encode(self, raw: Any) -> Segment:
        numbers = torch.arange(raw[0], raw[0] + raw[1])
        return Segment(self.name, numbers, targets=numbers)

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return nn.Embedding(1, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module | None:
        return None

    def placeholder(self) -> Segment:
        return self.encode((0, 1))


class Documents(Source):
    """Documents of given lengths; may grow where it is followed.

    Args:
        lengths: tokens of each document.
        number: of this source: its tokens are numbered apart.
        weight: share of the tokens.
        blocks: ends of the blocks of a source that is followed; None: not followed.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        number: int = 0,
        weight: float = 1.0,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weight)
        self.lengths = list(lengths)
        self.number = number
        self.blocks = None if blocks is None else list(blocks)
        self.found: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        return [("text", (self.number * SOURCE + index * STRIDE, self.lengths[index]))]

    def describe(self, index: int) -> str:
        return f"document {index}"

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter(range(len(self)))

    @property
    def follows(self) -> bool:
        return self.blocks is not None

    @property
    def block_ends(self) -> Sequence[int]:
        return (len(self),) if self.blocks is None else self.blocks

    def add(self, lengths: Sequence[int]) -> None:
        """Put a block at the end, found at the next look."""
        self.found += lengths

    def refresh(self) -> bool:
        if not self.found:
            return False
        assert self.blocks is not None
        self.lengths += self.found
        self.blocks.append(len(self.lengths))
        self.found = []
        return True


def stream_of(
    sources: Mapping[str, Source],
    row_length: int = 16,
    rows: int = 2,
    seed: int = 0,
    buffer_size: int = 6,
    poll_seconds: float = 0.01,
) -> TrainStream:
    """A training stream without a data module."""
    numbered = Numbered()
    log = BadSampleLog([f"train/{name}" for name in sources], 10, 0)
    prototypes = {"text": prototype_of(numbered.placeholder())}
    return TrainStream(
        sources,
        DocumentPieces({"text": numbered}, row_length, log, "train"),
        Collator(prototypes, ["text"], row_length, rows),
        seed,
        buffer_size,
        poll_seconds,
    )


def targets_of(batch: Batch) -> list[int]:
    """Numbers of the tokens that a batch predicts."""
    targets = batch.modalities["text"].targets
    assert targets is not None
    return targets.tolist()


def targets_of_pieces(pieces: Iterable[Piece]) -> list[int]:
    """Numbers of the tokens that pieces will predict: all that have a target, but for the first."""
    numbers: list[int] = []
    for piece in pieces:
        for place, segment in enumerate(piece.segments):
            if segment.targets is not None:
                numbers += segment.targets[0 if place else 1 :].tolist()
    return numbers


def still_to_come(
    stream: TrainStream, places: Sequence[ReaderPlace], fronts: Mapping[str, int]
) -> Counter[int]:
    """Targets that places hold, up to a front in each source's row."""
    numbers: list[int] = []
    for number, (name, source) in enumerate(stream.sources.items()):
        row = row_of(source, mix(stream.seed, zlib.crc32(name.encode())))

        def pieces(position: int, first: int, stop: int | None) -> list[Piece]:
            document = int(row.documents(np.array([position]))[0])  # noqa: B023  # used in this turn only
            return (stream.read(name, source, document) or [])[first:stop]  # noqa: B023

        for place in places:
            for lane in place.sources[name].lanes:
                end = fronts[name] if lane.stop is None else lane.stop
                for position in range(lane.start, end, lane.step):
                    numbers += targets_of_pieces(pieces(position, 0, None))
            for run in place.sources[name].runs:
                numbers += targets_of_pieces(pieces(run.position, run.first, run.stop))
            buffered = zip(
                place.buffered.sources, place.buffered.positions, place.buffered.numbers, strict=True
            )
            for where, position, piece in buffered:
                if where == number:
                    numbers += targets_of_pieces(pieces(position, piece, piece + 1))
    return Counter(numbers)


def fronts_of(places: Sequence[ReaderPlace]) -> dict[str, int]:
    """The first position in each source's row from which on nobody has read."""
    return {name: max(place.sources[name].lanes[-1].start for place in places) for name in places[0].sources}


def expected(stream: TrainStream, fronts: Mapping[str, int]) -> Counter[int]:
    """Targets of the documents at all positions below a front."""
    numbers: list[int] = []
    for name, source in stream.sources.items():
        row = row_of(source, mix(stream.seed, zlib.crc32(name.encode())))
        for document in row.documents(np.arange(fronts[name])).tolist():
            numbers += targets_of_pieces(stream.read(name, source, document) or [])
    return Counter(numbers)


def assert_nothing_lost_or_given_twice(
    stream: TrainStream, given: Counter[int], places: Sequence[ReaderPlace]
) -> None:
    """What was given and what is still to come are together each document once an epoch."""
    fronts = fronts_of(places)
    assert given + still_to_come(stream, places, fronts) == expected(stream, fronts)
