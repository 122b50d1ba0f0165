"""`DocumentScorer`: how well a checkpoint predicts documents - bits per byte, tau, main loss and PI of each.

Notable:
- The same sums as in training, but a document at a time: L_main is the weighted sum of each modality's mean
  loss, tau the mean entropy, PI = exp(-alpha * (L_main / tau + gamma * mean surprise)), `module.integrity`.
- Documents are packed into rows, one forward pass for many. Surprise is the norm of a gradient over ONE
  document's tokens, so that asking for it costs a forward and a backward pass a document; without it, its
  term is 0. Where alpha is the activation rate, it is that of ONE document's rows: a forward pass each.
- The module's parameters keep their gradients and their `requires_grad`; nothing is trained here.
- Sums are in float64, products in the weights' type: on another machine the last digits may differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.packing import Collator, Piece, prototype_of, split_document
from datamodules.waiting import WaitingPieces
from onn_lightning.batch import Batch, Segment
from onn_lightning.document import Document, encode_document
from onn_lightning.modality import HeadOutput
from onn_lightning.module import OmniModule
from onn_lightning.nn.loss import bits_per_byte


@dataclass(frozen=True)
class Score:
    """What a model makes of one document; NaN where there is nothing to tell.

    Args:
        bits_per_byte: of its text.
        main_loss: L_main, nats.
        tau: mean entropy of the predictions, nats.
        surprise: mean S over the neurons; 0 where it was not asked for.
        pi: predictive integrity, in (0, 1].
    """

    bits_per_byte: float
    main_loss: float
    tau: float
    surprise: float
    pi: float


@dataclass(frozen=True)
class EncodedDocument:
    """A document as rows will hold it.

    Args:
        pieces: each fits in a row.
    """

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(len(piece) for piece in self.pieces)


class DocumentScorer:
    """Scores documents with one module, on the module's device.

    Args:
        module: in evaluation mode, as `OmniModule.load_from_checkpoint` returns it.
        row_length: tokens in a row; longer documents are cut, as in training.
        rows_per_batch: rows in a forward pass.
        max_rows: rows of a document that are read; what follows in a longer one does not count.
        with_surprise: compute S, at the price of a backward pass a document.
    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        module: OmniModule,
        row_length: int = 1024,
        rows_per_batch: int = 8,
        max_rows: int = 16,
        with_surprise: bool = False,
    ) -> None:
        if row_length < 2 or rows_per_batch < 1 or max_rows < 1:
            raise ValueError(
                f"DocumentScorer: row_length={row_length} must be at least 2, "
                f"rows_per_batch={rows_per_batch} and max_rows={max_rows} at least 1"
            )
        self.module = module
        self.row_length, self.rows_per_batch, self.max_rows = row_length, rows_per_batch, max_rows
        self.with_surprise = with_surprise
        self._device = next(module.parameters()).device

    @property
    def tokens_per_batch(self) -> int:
        """Tokens that one forward pass takes."""
        return self.row_length * self.rows_per_batch

    def encode(self, document: Document) -> EncodedDocument:
        """Encode a document with the module's own modalities.

        Raises:
            BadSampleError: if an item is damaged, does not fit in a row, or is of a modality that the module
                does not have.
        """
        segments = encode_document(document, self.module.modalities)
        return EncodedDocument(tuple(split_document(segments, self.row_length)[: self.max_rows]))

    def score(self, documents: Sequence[EncodedDocument]) -> list[Score]:
        """Score documents, in their order."""
        if not self.with_surprise and not isinstance(self.module.integrity.alpha, str):
            return [sums.score(self.module) for sums in self._sums(documents)]
        scores = []
        for document in documents:
            (sums,) = self._sums([document])
            surprise = self._surprise(document, sums) if self.with_surprise else 0.0
            scores.append(sums.score(self.module, surprise))
        return scores

    def _sums(self, documents: Sequence[EncodedDocument]) -> list[_Sums]:
        sums = [_Sums() for _ in documents]
        with torch.no_grad():
            for batch, owners in self._batches(documents):
                seen = self.module(batch)
                tokens = batch.modality_ids.numel()
                fired = float(seen.auxiliary.activation.double().mean()) * tokens
                for own in sums:
                    own.fired += fired
                    own.tokens += tokens
                outputs = self.module.predict_targets(batch, seen.hidden)
                for name, output in outputs.items():
                    sources = batch.modalities[name].source_indices
                    assert sources is not None  # predict_targets gave it an output
                    _add(sums, name, output, owners[sources])
        return sums

    def _surprise(self, document: EncodedDocument, sums: _Sums) -> float:
        """Mean over the neurons of S: the norm over the document's tokens of the gradient of its L_main."""
        squares: Tensor | None = None
        with torch.enable_grad():
            for batch, _ in self._batches([document]):
                output = self.module(batch)
                losses = [
                    self._weight(name) / sums.counts[name] * head_output.loss.sum()
                    for name, head_output in self.module.predict_targets(batch, output.hidden).items()
                    if len(head_output.loss)
                ]
                if not losses:
                    continue
                leaf = output.auxiliary.surprise
                (surprise,) = torch.autograd.grad(torch.stack(losses).sum(), leaf)
                squares = surprise.square() if squares is None else squares + surprise.square()
        return 0.0 if squares is None else float(squares.sqrt().mean())

    def _weight(self, name: str) -> float:
        return float(self.module.loss_weights[list(self.module.heads).index(name)])

    def _batches(self, documents: Sequence[EncodedDocument]) -> Iterator[tuple[Batch, Tensor]]:
        """Batches, and [B * T] which document each of their tokens is of."""
        for rows in _groups(_rows(documents, self.row_length), self.rows_per_batch):
            pieces = [[piece for _, piece in row] for row in rows]
            segments = [segment for row in pieces for piece in row for segment in piece.segments]
            collate = Collator(
                _prototypes(segments), list(self.module.modalities), self.row_length, len(rows)
            )
            owners = torch.full((len(rows), self.row_length), -1)
            for number, row in enumerate(rows):
                ends = torch.tensor([len(piece) for _, piece in row]).cumsum(0).tolist()
                for (document, piece), end in zip(row, ends, strict=True):
                    owners[number, end - len(piece) : end] = document
            yield collate(pieces).to(self._device), owners.flatten().to(self._device)


class _Sums:
    """Sums over one document's targets, in float64."""

    def __init__(self) -> None:
        self.nats: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.text_nats = self.num_bytes = 0.0
        self.entropy = self.predictions = 0.0
        self.fired = self.tokens = 0.0  # of the whole batches that the document was in

    def score(self, module: OmniModule, surprise: float = 0.0) -> Score:
        """The figures that these sums make."""
        weights: Mapping[str, float] = dict(zip(module.heads, module.loss_weights.tolist(), strict=True))
        if not self.nats:
            return Score(*[math.nan] * 5)
        main_loss = sum(weights[name] * nats / self.counts[name] for name, nats in self.nats.items())
        tau = self.entropy / self.predictions if self.predictions else math.nan
        unit = tau if self.predictions else 1.0  # as in training: a loss without a distribution as it is
        figures = [main_loss, unit, surprise, self.fired / self.tokens, float(module.measured().mean_gate)]
        loss, entropy, mean, activation, gate = torch.tensor(figures, dtype=torch.float64)
        pi = module.integrity(loss, entropy, mean, activation, gate)
        bits = bits_per_byte(torch.tensor(self.text_nats), torch.tensor(self.num_bytes))
        return Score(float(bits) if self.num_bytes else math.nan, main_loss, tau, surprise, float(pi))


def _add(sums: Sequence[_Sums], name: str, output: HeadOutput, owners: Tensor) -> None:
    """Add a batch's losses of one modality to the sums of the documents they belong to."""

    def by_document(values: Tensor) -> list[float]:
        total = torch.zeros(len(sums), dtype=torch.float64, device=values.device)
        return total.index_add_(0, owners, values.double()).tolist()

    counts = by_document(torch.ones_like(output.loss))
    nats = by_document(output.loss)
    entropy = None if output.entropy is None else by_document(output.entropy)
    num_bytes = None if output.num_bytes is None else by_document(output.num_bytes)
    for document, count in enumerate(counts):
        if not count:
            continue
        own = sums[document]
        own.nats[name] = own.nats.get(name, 0.0) + nats[document]
        own.counts[name] = own.counts.get(name, 0) + int(count)
        if entropy is not None:
            own.entropy += entropy[document]
            own.predictions += count
        if num_bytes is not None:
            own.text_nats += nats[document]
            own.num_bytes += num_bytes[document]


def _rows(documents: Sequence[EncodedDocument], row_length: int) -> Iterator[list[tuple[int, Piece]]]:
    """Fill rows by best fit, each beginning with the oldest piece: (number of the document, piece)."""
    owners = [number for number, document in enumerate(documents) for _ in document.pieces]
    waiting = WaitingPieces()
    for document in documents:
        for piece in document.pieces:
            waiting.append(piece)
    while len(waiting):
        row = [(owners.pop(0), waiting.pop(0))]
        room = row_length - len(row[0][1])
        while (fitting := waiting.best_fit(room)) is not None:
            row.append((owners.pop(fitting), waiting.pop(fitting)))
            room -= len(row[-1][1])
        yield row


def _groups(rows: Iterator[list[tuple[int, Piece]]], size: int) -> Iterator[list[list[tuple[int, Piece]]]]:
    group = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _prototypes(segments: Sequence[Segment]) -> dict[str, Segment]:
    """An empty segment of each modality, with targets where any segment of it has them."""
    prototypes: dict[str, Segment] = {}
    for segment in segments:
        known = prototypes.get(segment.modality)
        if known is None or (known.targets is None and segment.targets is not None):
            prototypes[segment.modality] = prototype_of(segment)
    return prototypes
