"""How much of what a batch holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onn_lightning.batch import Batch
from onn_lightning.inspection.pieces import PackedPiece
from onn_lightning.modality import Modality


@dataclass(frozen=True)
class ModalityCounts:
    """One modality's part.

    Args:
        tokens: of this modality.
        targets: of them supervised.
        media: images, sounds, ...; 0 for a modality without an inner geometry.
        pixels: of its media, cells of a spectrogram, as a batch's budget of pixels counts them.
    """

    tokens: int = 0
    targets: int = 0
    media: int = 0
    pixels: int = 0

    def __add__(self, other: ModalityCounts) -> ModalityCounts:
        return ModalityCounts(
            self.tokens + other.tokens,
            self.targets + other.targets,
            self.media + other.media,
            self.pixels + other.pixels,
        )


@dataclass(frozen=True)
class Counts:
    """Counts of one batch or of several.

    Args:
        rows: of all batches.
        places: rows x tokens of a row.
        pieces: documents and parts of documents.
        continued: pieces whose document has begun earlier.
        unfinished: pieces whose document goes on elsewhere.
        modalities: by name.
        sources: tokens by the name of the source, where batches know theirs (held-out data).
    """

    rows: int = 0
    places: int = 0
    pieces: int = 0
    continued: int = 0
    unfinished: int = 0
    modalities: Mapping[str, ModalityCounts] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """All that is not padding."""
        return sum(counts.tokens for counts in self.modalities.values())

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        return 1 - self.tokens / self.places if self.places else 0.0

    def __add__(self, other: Counts) -> Counts:
        names = sorted({*self.modalities, *other.modalities})
        nothing = ModalityCounts()
        return Counts(
            self.rows + other.rows,
            self.places + other.places,
            self.pieces + other.pieces,
            self.continued + other.continued,
            self.unfinished + other.unfinished,
            {
                name: self.modalities.get(name, nothing) + other.modalities.get(name, nothing)
                for name in names
            },
            Counter(self.sources) + Counter(other.sources),
        )


@dataclass(frozen=True)
class Totals:
    """All batches together.

    Args:
        counts: of all of them.
        sources: share of the tokens by source.
        bad_samples: skipped on the way, by `split/source`; only those with any.
    """

    counts: Counts
    sources: Mapping[str, float]
    bad_samples: Mapping[str, int]


def counts_of(batch: Batch, pieces: Sequence[PackedPiece], modalities: Mapping[str, Modality]) -> Counts:
    """Count one batch.

    Args:
        batch: what the loader gave.
        pieces: of it.
        modalities: the run's modalities by name; those that the data has nothing of count as 0.
    """
    by_name = dict.fromkeys(sorted(modalities), ModalityCounts())
    for run in (run for piece in pieces for run in piece.runs):
        is_medium = run.segment.positions_2d is not None
        by_name[run.modality] += ModalityCounts(
            len(run),
            int(run.supervised.sum()),
            int(is_medium),
            modalities[run.modality].pixels(run.segment) if is_medium else 0,
        )
    return Counts(
        rows=len(batch.document_ids),
        places=batch.document_ids.numel(),
        pieces=len(pieces),
        continued=sum(piece.continues for piece in pieces),
        unfinished=sum(piece.goes_on for piece in pieces),
        modalities=by_name,
        sources={batch.source: batch.num_tokens} if batch.source else {},
    )
