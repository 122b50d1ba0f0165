"""Where every reader stands in the data, as plain numbers, and how other readers go on from there.

Notable:
- A reader owns lanes of a source's row of positions (see `order`): `start, start + step, ...`. A fresh
  reader r of R has one lane, from r on in steps of R. So each position belongs to exactly one reader.
- Where the number of readers changed, what no reader had read yet is divided anew. Below the furthest
  reader's position (the front) that is a few finite lanes: end to end they are one list, cut into as
  many stretches as there are readers now; from the front on the readers take turns again. Every change
  adds at most as many lanes as there were and are readers, and they are used up first.
- Pieces that waited in a buffer, and documents read in part, go back as runs of pieces: the next reader
  reads their documents again and takes just these pieces.
- States are numbers, strings, lists and dicts: loadable without unpickling, and of a size that depends
  on the buffers and the number of readers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Lane:
    """Positions `start, start + step, ...` below `stop`; None: without end."""

    start: int
    step: int
    stop: int | None = None

    def __len__(self) -> int:
        assert self.stop is not None
        return max(0, -(-(self.stop - self.start) // self.step))

    def part(self, first: int, last: int) -> Lane:
        """Its positions number first..last - 1."""
        return Lane(self.start + first * self.step, self.step, self.start + last * self.step)


@dataclass(frozen=True)
class Run:
    """Pieces `first` to `stop` - 1 (None: to the last) of the document at a position."""

    position: int
    first: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class SourcePlace:
    """One reader's place in one source.

    Args:
        lanes: documents not read yet; the last lane has no end.
        runs: what is left of documents read in part, and to be given before any other.
        served: tokens given so far, each divided by the weight it was given at.
        documents: how many documents the reader knew of, of a source that grows; 0 of others.
        fingerprint: of these documents.
    """

    lanes: tuple[Lane, ...]
    runs: tuple[Run, ...] = ()
    served: float = 0.0
    documents: int = 0
    fingerprint: str = ""

    def plain(self) -> dict[str, Any]:
        return {
            "lanes": [[lane.start, lane.step, lane.stop] for lane in self.lanes],
            "runs": [[run.position, run.first, run.stop] for run in self.runs],
            "served": self.served,
            "documents": self.documents,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_plain(cls, state: Mapping[str, Any]) -> SourcePlace:
        return cls(
            tuple(Lane(*lane) for lane in state["lanes"]),
            tuple(Run(*run) for run in state["runs"]),
            state["served"],
            state["documents"],
            state["fingerprint"],
        )


@dataclass(frozen=True)
class Buffered:
    """Where the pieces of a buffer come from, column by column (of three lists, copies are cheap).

    Args:
        sources: numbers of their sources, in the order of the reader's places.
        positions: of their documents.
        numbers: which piece of the document each is.
    """

    sources: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class ReaderPlace:
    """One reader's exact place in the training data.

    Args:
        sources: by name.
        weights: mixture weight of each source.
        buffered: the pieces that wait to be drawn.
        draws: random draws made so far.
    """

    sources: Mapping[str, SourcePlace]
    weights: tuple[float, ...]
    buffered: Buffered = field(default_factory=Buffered)
    draws: int = 0

    def plain(self) -> dict[str, Any]:
        return {
            "sources": {name: place.plain() for name, place in self.sources.items()},
            "weights": list(self.weights),
            "buffered": [self.buffered.sources, self.buffered.positions, self.buffered.numbers],
            "draws": self.draws,
        }

    @classmethod
    def from_plain(cls, state: Mapping[str, Any]) -> ReaderPlace:
        return cls(
            {name: SourcePlace.from_plain(place) for name, place in state["sources"].items()},
            tuple(state["weights"]),
            Buffered(*(list(column) for column in state["buffered"])),
            state["draws"],
        )


def fresh_places(weights: Mapping[str, float], readers: int) -> list[ReaderPlace]:
    """The places of all readers before the first document."""
    return [
        ReaderPlace(
            {name: SourcePlace((Lane(reader, readers),)) for name in weights}, tuple(weights.values())
        )
        for reader in range(readers)
    ]


def divided(places: Sequence[ReaderPlace], readers: int) -> list[ReaderPlace]:
    """Hand everything that has not been given out yet to another number of readers.

    Args:
        places: of all readers so far.
        readers: how many there are from now on.
    Returns:
        Their places, with empty buffers; which reader gets what depends on nothing but the arguments.
    """
    parts = {
        name: _divided_source(
            [place.sources[name] for place in places],
            [_runs_of(place.buffered, number) for place in places],
            readers,
        )
        for number, name in enumerate(places[0].sources)
    }
    draws = max(place.draws for place in places)
    return [
        ReaderPlace(
            {name: part[reader] for name, part in parts.items()}, places[0].weights, Buffered(), draws
        )
        for reader in range(readers)
    ]


def _divided_source(
    places: Sequence[SourcePlace], buffered: Sequence[Iterable[Run]], readers: int
) -> list[SourcePlace]:
    endless = [place.lanes[-1] for place in places]
    front = max(lane.start for lane in endless)
    finite = [lane for place in places for lane in place.lanes[:-1]]
    finite += [Lane(lane.start, lane.step, front) for lane in endless]
    shares = _stretches(sorted(filter(len, finite), key=lambda lane: lane.start), readers)
    runs = [run for place in places for run in place.runs] + [run for part in buffered for run in part]
    runs.sort(key=lambda run: (run.position, run.first))
    documents = [_joined(group) for _, group in groupby(runs, key=lambda run: run.position)]
    furthest = max(places, key=lambda place: place.documents)
    return [
        SourcePlace(
            lanes=(*shares[reader], Lane(front + reader, readers)),
            runs=tuple(run for document in documents[reader::readers] for run in document),
            documents=furthest.documents,
            fingerprint=furthest.fingerprint,
        )
        for reader in range(readers)
    ]


def _stretches(lanes: Sequence[Lane], count: int) -> list[list[Lane]]:
    """Cut finite lanes, laid end to end, into stretches of equal numbers of positions."""
    total = sum(map(len, lanes))
    shares: list[list[Lane]] = [[] for _ in range(count)]
    begun = share = 0
    for lane in lanes:
        first = 0
        while first < len(lane):
            last = min(len(lane), total * (share + 1) // count - begun)
            if first < last:
                shares[share].append(lane.part(first, last))
                first = last
            if first < len(lane):
                share += 1
        begun += len(lane)
    return shares


def _runs_of(buffered: Buffered, source: int) -> Iterable[Run]:
    for number, position, piece in zip(buffered.sources, buffered.positions, buffered.numbers, strict=True):
        if number == source:
            yield Run(position, piece, piece + 1)


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Runs of one document, in order; those that follow each other become one."""
    joined: list[Run] = []
    for run in runs:
        if joined and joined[-1].stop == run.first:
            run = Run(run.position, joined.pop().first, run.stop)
        joined.append(run)
    return joined
