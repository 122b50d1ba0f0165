"""Streams of batches: `TrainStream`, endless and resumable, and `HeldOutStream`, each document once.

Notable:
- Pieces wait in a bounded buffer. A training row is filled with pieces drawn at random until one does
  not fit, and its end by best fit: shuffled, and nearly without padding. A held-out row begins with
  the oldest piece and is filled by best fit: the same every time.
- The state of a training stream is a few numbers a source and, of the buffer, only where its pieces
  came from; on resume they are encoded again. It is plain data, loadable without unpickling.
- Held-out batches do not depend on the number of ranks: all ranks pack the same batches and each
  takes its own. Where they do not come out even, the last ones are pure padding, since ranks that
  run different numbers of forward passes would wait for each other forever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from datamodules.bad_samples import BadSampleLog
from datamodules.mixture import Mixture, PieceRef, mix
from datamodules.packing import Collator, Piece, best_fit, split_document
from datamodules.sources import Source
from onn_lightning.batch import Batch
from onn_lightning.document import encode_document
from onn_lightning.modality import BadSampleError, Modality


@dataclass(frozen=True)
class Replica:
    """Which of the data-parallel copies of the model this process feeds.

    Args:
        number: 0 <= number < count.
        count: how many copies read different data.
    """

    number: int = 0
    count: int = 1


class DocumentPieces:
    """Documents of a source -> pieces; bad ones are logged and give None.

    Args:
        modalities: the run's modalities by name.
        row_length: tokens in a row.
        bad_samples: where bad samples are counted.
        split: "train", "validation", ...: bad samples are counted under `split/name`.
    """

    def __init__(
        self, modalities: Mapping[str, Modality], row_length: int, bad_samples: BadSampleLog, split: str
    ) -> None:
        self.modalities = modalities
        self.row_length = row_length
        self.bad_samples = bad_samples
        self.split = split

    def __call__(self, name: str, source: Source, index: int) -> list[Piece] | None:
        try:
            segments = encode_document(source[index], self.modalities)
            if not segments:
                raise BadSampleError("the document has no tokens; remove it")
            pieces = split_document(segments, self.row_length)
        except BadSampleError as error:
            self.bad_samples.bad(f"{self.split}/{name}", source.describe(index), error)
            return None
        self.bad_samples.good()
        return pieces


class TrainStream(IterableDataset[Batch]):
    """Endless batches of shuffled, mixed and packed documents.

    Args:
        sources: by name, mixed by their weights.
        read: documents -> pieces.
        collator: rows -> batch.
        seed: of every order and draw.
        buffer_size: pieces among which rows are drawn.
        replica: which share of the documents is read here.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        read: DocumentPieces,
        collator: Collator,
        seed: int,
        buffer_size: int,
        replica: Replica,
    ) -> None:
        self.sources = sources
        self.read = read
        self.collator = collator
        self.seed = seed
        self.buffer_size = buffer_size
        self.replica = replica

    def __iter__(self) -> TrainIterator:
        worker = get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader = self.replica.number * num_workers + worker_id
        return TrainIterator(self, reader, self.replica.count * num_workers)


class TrainIterator(Iterator[Batch]):
    """One reader's pass through a `TrainStream`; its state is the exact place in it.

    Args:
        stream: what is read.
        reader: number of this reader among all loader workers of all replicas.
        readers: how many there are.
    """

    def __init__(self, stream: TrainStream, reader: int, readers: int) -> None:
        self._collator = stream.collator
        self._buffer_size = stream.buffer_size
        self._draw_key = mix(stream.seed, reader)
        self._draws = 0
        self._mixture = Mixture(stream.sources, stream.seed, reader, readers, stream.read)
        self._refs: list[PieceRef] = []
        self._pieces: list[Piece] = []
        self._identity = {
            "seed": stream.seed,
            "row_length": stream.collator.row_length,
            "reader": reader,
            "readers": readers,
            "documents": {name: len(source) for name, source in stream.sources.items()},
        }

    def __next__(self) -> Batch:
        return self._collator([self._next_row() for _ in range(self._collator.rows_per_batch)])

    def _next_row(self) -> list[Piece]:
        while len(self._pieces) < self._buffer_size:
            ref, piece = self._mixture.next_piece()
            self._refs.append(ref)
            self._pieces.append(piece)
        row: list[Piece] = []
        room = self._collator.row_length
        while self._pieces:
            drawn = mix(self._draw_key, self._draws) % len(self._pieces)
            self._draws += 1
            if self._pieces[drawn].length > room:
                break
            row.append(self._take(drawn))
            room -= len(row[-1])
        while (fitting := best_fit(self._pieces, room)) is not None:
            row.append(self._take(fitting))
            room -= len(row[-1])
        return row

    def _take(self, index: int) -> Piece:
        piece = self._pieces[index]
        self._refs[index], self._pieces[index] = self._refs[-1], self._pieces[-1]
        self._refs.pop()
        self._pieces.pop()
        return piece

    def state_dict(self) -> dict[str, Any]:
        """The exact place in the data, as plain numbers, strings, lists and dicts."""
        return {
            "identity": self._identity,
            "draws": self._draws,
            "mixture": self._mixture.state_dict(),
            "buffer": [[ref.source, ref.position, ref.number] for ref in self._refs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place of a `state_dict`.

        Raises:
            ValueError: if it was saved over other data, another layout or another number of readers.
        """
        saved = state["identity"]
        for name, here in self._identity.items():
            if saved.get(name) != here:
                raise ValueError(
                    f"cannot resume the data stream: it was saved with {name} = {saved.get(name)}, now it is "
                    f"{here}; restore that value, or start a new run from the weights"
                )
        self._draws = state["draws"]
        self._mixture.load_state_dict(state["mixture"])
        self._refs = [PieceRef(*ref) for ref in state["buffer"]]
        self._pieces = self._mixture.pieces_at(self._refs)


class HeldOutStream(IterableDataset[Batch]):
    """Every document of one source exactly once, in order.

    Args:
        name: of the source; the batches carry it.
        source: what is read.
        read: documents -> pieces.
        collator: rows -> batch.
        look_ahead: pieces among which rows are filled.
        replica: which of the batches are given here.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        read: DocumentPieces,
        collator: Collator,
        look_ahead: int,
        replica: Replica,
    ) -> None:
        self.name = name
        self.source = source
        self.read = read
        self.collator = collator
        self.look_ahead = look_ahead
        self.replica = replica

    def __iter__(self) -> Iterator[Batch]:
        rows: list[list[Piece]] = []
        number = 0  # of the batch among those of all replicas
        for row in self._rows():
            rows.append(row)
            if len(rows) == self.collator.rows_per_batch:
                if number % self.replica.count == self.replica.number:
                    yield self.collator(rows, self.name)
                rows, number = [], number + 1
        while rows or number % self.replica.count:
            if number % self.replica.count == self.replica.number:
                yield self.collator(rows, self.name)
            rows, number = [], number + 1

    def _rows(self) -> Iterator[list[Piece]]:
        waiting: list[Piece] = []
        for index in range(len(self.source)):
            for piece in self.read(self.name, self.source, index) or []:
                waiting.append(piece)
                while len(waiting) > self.look_ahead:
                    yield self._fill(waiting)
        while waiting:
            yield self._fill(waiting)

    def _fill(self, waiting: list[Piece]) -> list[Piece]:
        row = [waiting.pop(0)]
        room = self.collator.row_length - len(row[0])
        while (fitting := best_fit(waiting, room)) is not None:
            row.append(waiting.pop(fitting))
            room -= len(row[-1])
        return row
