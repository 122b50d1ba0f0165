"""`ModelFilter`: drops documents that a given checkpoint finds too hard or too easy to predict.

Notable:
- Scores are those of `onn_lightning.scoring`: bits per byte of the text and PI of the whole document. A high
  figure of bits per byte means noise, a very low one repetition or what the model knows by heart.
- The checkpoint is loaded once a process, at the first document, and nothing in the file is executed.
- Documents that the model cannot read (a modality it has not) or that give it nothing to predict are kept:
  it says nothing about them.
- Scores are floating-point sums: on another machine a document AT a limit may fall on the other side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from datatrove.data import Document

from datamodules.prepare.document import unpack
from datamodules.prepare.records import StepRecord
from datamodules.prepare.step import Filter

if TYPE_CHECKING:
    from onn_lightning.scoring import DocumentScorer, EncodedDocument, Score

_DOCUMENTS_AT_ONCE = 256


class ModelFilter(Filter):
    """Drops documents by the scores of a checkpoint.

    Args:
        checkpoint: file written by `onn fit`.
        min_bits_per_byte, max_bits_per_byte: bounds for the text; None: no bound.
        min_pi, max_pi: bounds for PI, in 0..1; None: no bound.
        with_surprise: let PI hold the term of surprise, which costs a backward pass a document.
        row_length, rows_per_batch, max_rows: see `DocumentScorer`; of a longer document only the beginning
            (row_length * max_rows tokens) is read.
        device: where the model runs.
        trusted_packages: packages, beside ours, from which the checkpoint may name modality classes.
    Raises:
        ValueError: if no bound is given.
    """

    name = "model"

    def __init__(
        self,
        checkpoint: str,
        min_bits_per_byte: float | None = None,
        max_bits_per_byte: float | None = None,
        min_pi: float | None = None,
        max_pi: float | None = None,
        with_surprise: bool = False,
        row_length: int = 1024,
        rows_per_batch: int = 8,
        max_rows: int = 16,
        device: str = "cpu",
        trusted_packages: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.bits_per_byte = (min_bits_per_byte, max_bits_per_byte)
        self.pi = (min_pi, max_pi)
        if all(bound is None for bound in (*self.bits_per_byte, *self.pi)):
            raise ValueError(
                "ModelFilter: give at least one of min_bits_per_byte, max_bits_per_byte, min_pi and max_pi"
            )
        self._loading = (checkpoint, device, tuple(trusted_packages or ()))
        self._scoring = (row_length, rows_per_batch, max_rows, with_surprise)

    @property
    def scorer(self) -> DocumentScorer:
        """The checkpoint's scorer in this process.

        Raises:
            CheckpointError: if the file cannot be used; names it, the reason and the remedy.
        """
        return _scorer(self._loading, self._scoring)

    def judge(self, document: Document) -> str | None:
        """Name the bound that the document is beyond."""
        encoded = self._encoded(document)
        return None if encoded is None else self._reason(self.scorer.score([encoded])[0])

    def process(self, documents: Iterable[Document], record: StepRecord, task: int) -> Iterator[Document]:
        """Judge as many at a time as a forward pass takes; the examples begin with the scores."""
        waiting: list[tuple[Document, EncodedDocument | None]] = []
        tokens = 0
        for document in documents:
            encoded = self._encoded(document)
            waiting.append((document, encoded))
            tokens += 0 if encoded is None else len(encoded)
            if tokens >= self.scorer.tokens_per_batch or len(waiting) == _DOCUMENTS_AT_ONCE:
                yield from self._judged(waiting, record)
                waiting, tokens = [], 0
        yield from self._judged(waiting, record)

    def _judged(
        self, waiting: list[tuple[Document, EncodedDocument | None]], record: StepRecord
    ) -> Iterator[Document]:
        readable = [encoded for _, encoded in waiting if encoded is not None]
        with self.track_time("batch"):
            scores = iter(self.scorer.score(readable) if readable else ())
        for document, encoded in waiting:
            score = None if encoded is None else next(scores)
            reason = None if score is None else self._reason(score)
            self.stat_update("total", "forwarded" if reason is None else "dropped")
            if score is None or reason is None:
                record.kept += 1
                yield document
            else:
                figures = f"[{score.bits_per_byte:.2f} bits per byte, PI {score.pi:.2f}] "
                record.drop(reason, document.id, figures + document.text)

    def _encoded(self, document: Document) -> EncodedDocument | None:
        from onn_lightning.modality import BadSampleError

        raw: list[Any] = []
        for item in unpack(document):
            data = item.value if item.media is None else item.media
            raw.append((item.modality, data if item.text is None else item.text, item.supervised))
        try:
            return self.scorer.encode(raw)
        except BadSampleError:
            return None

    def _reason(self, score: Score) -> str | None:
        for name, value, (least, most) in (
            ("bits per byte", score.bits_per_byte, self.bits_per_byte),
            ("PI", score.pi, self.pi),
        ):
            if math.isnan(value):
                continue
            if least is not None and value < least:
                return f"{name} too low"
            if most is not None and value > most:
                return f"{name} too high"
        return None


@cache
def _scorer(loading: tuple[str, str, tuple[str, ...]], scoring: tuple[int, int, int, bool]) -> DocumentScorer:
    from onn_lightning.module import OmniModule
    from onn_lightning.scoring import DocumentScorer

    checkpoint, device, trusted_packages = loading
    module = OmniModule.load_from_checkpoint(checkpoint, device, trusted_packages=trusted_packages)
    return DocumentScorer(module, *scoring)
