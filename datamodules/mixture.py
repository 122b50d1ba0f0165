"""Which document comes next: a reader's place in each source, and the share of each in the mixture.

Notable:
- A reader reads the positions of its lanes (see `places`) in a source's row (see `order`), so each
  document is read once an epoch, by exactly one reader, whatever their numbers, and no reader ever
  waits at the end of an epoch.
- Shares are counted in tokens, not documents: the source that is furthest behind its share is next.
  At any moment each is within one piece of what its weight promises.
- A change of the weights begins the count anew: a source that gained weight has nothing to catch up.
- A followed source with nothing new is passed over and builds up no claim meanwhile. Where no other
  source has anything either, the reader looks again every few seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from datamodules.order import Row, mix, row_of
from datamodules.packing import Piece
from datamodules.places import Buffered, Lane, ReaderPlace, Run, SourcePlace
from datamodules.sources import Source

log = logging.getLogger(__name__)

_AHEAD = 128  # positions whose documents are computed together
_NAP_SECONDS = 0.1

PieceReader = Callable[[str, Source, int], list[Piece] | None]
"""(name, source, index) -> the pieces of one document, or None where it is damaged."""


class StreamClosed(Exception):
    """The loader went away while a reader was waiting for documents."""


@dataclass(frozen=True)
class PieceRef:
    """Where a piece comes from: enough to make it again.

    Args:
        source: number of its source in the mixture.
        position: of its document in the source's row.
        number: which piece of the document.
    """

    source: int
    position: int
    number: int


def changed_since(source: Source, document: int) -> ValueError:
    """The error for a document that lacks pieces which a state speaks of."""
    return ValueError(
        f"cannot resume: {source.describe(document)} no longer gives what it gave when the checkpoint was "
        "written; restore the data"
    )


class Cursor:
    """One reader's place in one source.

    Args:
        number: of the source in the mixture.
        name: of the source.
        source: what is read.
        row: its order.
        place: where to begin.
        poll_seconds: how often to look for new documents when there are none.
    """

    def __init__(
        self, number: int, name: str, source: Source, row: Row, place: SourcePlace, poll_seconds: float
    ) -> None:
        self.name = name
        self.source = source
        self.served = place.served
        self._number = number
        self._row = row
        self._runs = deque(place.runs)
        self._lanes = list(place.lanes)
        self._open: Run | None = None  # what is left of the document in `_pieces`
        self._pieces: list[Piece] = []
        self._documents: dict[int, int] = {}  # of the positions ahead
        self._poll_seconds = poll_seconds
        self._looked_at = -poll_seconds

    def place(self) -> SourcePlace:
        """Where this cursor stands."""
        runs = self._runs if self._open is None else (self._open, *self._runs)
        known = self._row.limit or 0
        fingerprint = self.source.fingerprint(known) if known else ""
        return SourcePlace(tuple(self._lanes), tuple(runs), self.served, known, fingerprint)

    def has_more(self) -> bool:
        """Whether there is a document to read now; looks for new ones, though not all the time."""
        if self._open is not None or self._runs or self._lane_with_documents() is not None:
            return True
        now = time.monotonic()
        if now - self._looked_at < self._poll_seconds:
            return False
        self._looked_at = now
        return self.source.refresh() and self._lane_with_documents() is not None

    def next_piece(self, read: PieceReader) -> tuple[PieceRef, Piece] | None:
        """Take the next piece, skipping documents that cannot be read; None: there is none for now."""
        while self._open is None:
            run = self._next_run()
            if run is None:
                return None
            document = self.document_at(run.position)
            self._pieces = read(self.name, self.source, document) or []
            if run.stop is not None and run.stop > len(self._pieces):
                raise changed_since(self.source, document)
            self._keep_open(run)
        run = self._open
        piece = self._pieces[run.first]
        self._keep_open(Run(run.position, run.first + 1, run.stop))
        return PieceRef(self._number, run.position, run.first), piece

    def document_at(self, position: int) -> int:
        """Number of the document at a position."""
        document = self._documents.pop(position, None)
        if document is None:
            document = int(self._row.documents(np.array([position]))[0])
        return document

    def _keep_open(self, run: Run) -> None:
        stop = len(self._pieces) if run.stop is None else run.stop
        self._open = run if run.first < stop else None

    def _next_run(self) -> Run | None:
        if self._runs:
            return self._runs.popleft()
        number = self._lane_with_documents()
        if number is None:
            return None
        lane = self._lanes[number]
        if lane.start not in self._documents:
            self._look_ahead(lane)
        rest = Lane(lane.start + lane.step, lane.step, lane.stop)
        if rest.stop is not None and rest.start >= rest.stop:
            del self._lanes[number]
        else:
            self._lanes[number] = rest
        return Run(lane.start)

    def _lane_with_documents(self) -> int | None:
        limit = self._row.limit
        if limit is None:
            return 0
        return next((number for number, lane in enumerate(self._lanes) if lane.start < limit), None)

    def _look_ahead(self, lane: Lane) -> None:
        """Compute which documents stand at the next positions of a lane."""
        stops = [stop for stop in (lane.stop, self._row.limit) if stop is not None]
        stop = min([lane.start + _AHEAD * lane.step, *stops])
        positions = np.arange(lane.start, stop, lane.step)
        self._documents = dict(zip(positions.tolist(), self._row.documents(positions).tolist(), strict=True))


class Mixture:
    """An endless stream of pieces out of several sources, by share of tokens.

    Args:
        sources: by name.
        seed: of the order of documents.
        place: where the reader begins, over the same sources in the same order.
        read: turns a document into pieces.
        poll_seconds: how often to look for new documents in a followed source that has none.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        seed: int,
        place: ReaderPlace,
        read: PieceReader,
        poll_seconds: float = 10.0,
    ) -> None:
        self._cursors = [
            Cursor(
                number,
                name,
                source,
                row_of(source, mix(seed, zlib.crc32(name.encode()))),
                place.sources[name],
                poll_seconds,
            )
            for number, (name, source) in enumerate(sources.items())
        ]
        self._weights = place.weights
        self._read = read
        self._poll_seconds = poll_seconds
        self._waiting = False

    def set_weights(self, weights: Sequence[float]) -> None:
        """Mix by these weights from now on; 0: a source gives nothing."""
        if self._weights != tuple(weights):
            self._weights = tuple(weights)
            for cursor in self._cursors:
                cursor.served = 0.0

    def next_piece(self) -> tuple[PieceRef, Piece] | None:
        """The next piece, of the source that is furthest behind its share; None: there is none for now."""
        passed_over: list[Cursor] = []
        candidates = self._mixed()
        while candidates:
            cursor = min(candidates, key=lambda each: each.served)
            taken = cursor.next_piece(self._read) if cursor.has_more() else None
            if taken is not None:
                for other in passed_over:
                    other.served = max(other.served, cursor.served)
                cursor.served += len(taken[1]) / self._weights[taken[0].source]
                self._waiting = False
                return taken
            candidates.remove(cursor)
            passed_over.append(cursor)
        return None

    def _mixed(self) -> list[Cursor]:
        """Cursors of the sources that have a weight."""
        return [cursor for cursor, weight in zip(self._cursors, self._weights, strict=True) if weight]

    def wait(self, closed: Tensor) -> None:
        """Sleep until it is time to look for new documents again.

        Args:
            closed: [1], shared among processes; no longer 0: nobody wants the documents any more.
        Raises:
            StreamClosed: if it is closed, or the main process is gone.
        """
        if not self._waiting:
            self._waiting = True
            log.info(
                "no new documents in %s: looking again every %g seconds",
                ", ".join(f"'{cursor.name}'" for cursor in self._mixed()),
                self._poll_seconds,
            )
        until = time.monotonic() + self._poll_seconds
        main = multiprocessing.parent_process()
        while (left := until - time.monotonic()) > 0:
            if closed.item() or not (main is None or main.is_alive()):
                raise StreamClosed
            time.sleep(min(left, _NAP_SECONDS))

    def pieces_at(self, buffered: Buffered) -> list[Piece]:
        """Make pieces again that were given out before; each document is read once.

        Raises:
            ValueError: if a document has changed or can no longer be read.
        """
        wanted: dict[tuple[int, int], list[int]] = {}
        for place, (source, position) in enumerate(zip(buffered.sources, buffered.positions, strict=True)):
            wanted.setdefault((source, position), []).append(place)
        pieces: dict[int, Piece] = {}
        for (source, position), places in wanted.items():
            cursor = self._cursors[source]
            document = cursor.document_at(position)
            given = self._read(cursor.name, cursor.source, document) or []
            for place in places:
                if buffered.numbers[place] >= len(given):
                    raise changed_since(cursor.source, document)
                pieces[place] = given[buffered.numbers[place]]
        return [pieces[place] for place in range(len(buffered))]

    def places(self) -> dict[str, SourcePlace]:
        """The place in every source."""
        return {cursor.name: cursor.place() for cursor in self._cursors}

    @property
    def weights(self) -> tuple[float, ...]:
        """Mixture weights in use."""
        return self._weights
