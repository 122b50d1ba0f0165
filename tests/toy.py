"""Two small modalities and an obvious packer, so that tests of the model need no data module.

Notable:
- `ByteText` predicts bytes with the real embedder and head; `Patches` regresses rows of numbers on a grid.
- `pack` places given documents in given rows, one token after another, without any cleverness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onn_lightning.batch import Batch, ModalityTokens, Segment
from onn_lightning.document import Document, encode_document
from onn_lightning.modality import BadSampleError, Modality
from onn_lightning.nn import CharacterHead, PatchEmbedder, PatchRegressionHead, TextEmbedder

OPENING, CLOSING = 256, 257
VOCABULARY = 258


class ByteText(Modality):
    """UTF-8 bytes between an opening and a closing symbol.

    Args:
        embedding_size: width of the table; None: that of the trunk.
    """

    name = "text"

    def __init__(self, embedding_size: int | None = None) -> None:
        self.embedding_size = embedding_size

    def encode(self, raw: Any) -> Segment:
        if not isinstance(raw, str):
            raise BadSampleError(f"text must be a str, got {type(raw).__name__}")
        return self._segment(list(raw.encode()))

    def _segment(self, symbols: list[int]) -> Segment:
        ids = torch.tensor(symbols, dtype=torch.int64)
        return Segment(self.name, ids[:, None], targets=ids)

    def opening_segment(self) -> Segment:
        return self._segment([OPENING])

    def closing_segment(self) -> Segment:
        return self._segment([CLOSING])

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return TextEmbedder(
            VOCABULARY, 1, 1, hidden_size, self.embedding_size, use_words=False, use_previous_words=False
        )

    def build_head(self, hidden_size: int) -> nn.Module:
        num_bytes = (torch.arange(VOCABULARY) < 256).long()
        return CharacterHead(VOCABULARY, hidden_size, num_bytes, self.embedding_size)


class Patches(Modality):
    """Rows of numbers, read as the cells of a grid in reading order.

    Args:
        patch_dim: numbers in one cell.
        columns: width of the grid.
        predicted: whether the next cell's numbers are predicted.
    """

    name = "patch"

    def __init__(self, patch_dim: int = 3, columns: int = 2, predicted: bool = True) -> None:
        self.patch_dim, self.columns, self.predicted = patch_dim, columns, predicted

    def encode(self, raw: Any) -> Segment:
        cells = torch.as_tensor(raw, dtype=torch.float32).view(-1, self.patch_dim)
        number = torch.arange(len(cells))
        places = torch.stack((number % self.columns, number // self.columns), dim=1)
        return Segment(self.name, cells, places, cells if self.predicted else None)

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return PatchEmbedder(self.patch_dim, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module | None:
        return PatchRegressionHead(hidden_size, self.patch_dim) if self.predicted else None


def pack(
    rows: Sequence[Sequence[Document]], modalities: Sequence[Modality], length: int = 16, source: str = ""
) -> Batch:
    """Place documents in rows of `length` tokens.

    Args:
        rows: the documents of each row.
        modalities: those of the run.
        length: T.
        source: name of the data source.
    """
    by_name = {modality.name: modality for modality in modalities}
    names = sorted(by_name)
    modality_ids = torch.full((len(rows), length), -1)
    document_ids = torch.full((len(rows), length), -1)
    positions = torch.zeros(len(rows), length, dtype=torch.int64)
    tokens: dict[str, list[tuple[Segment, int]]] = {
        name: [] for name in names
    }  # one-token segments and places
    supervised: dict[str, list[tuple[Tensor, int]]] = {
        name: [] for name in names
    }  # targets and their sources
    for row, documents in enumerate(rows):
        column = 0
        for number, document in enumerate(documents):
            start = column
            for segment in encode_document(document, by_name):
                for index in range(len(segment)):
                    place = row * length + column
                    modality_ids[row, column] = names.index(segment.modality)
                    document_ids[row, column] = number
                    positions[row, column] = column - start
                    tokens[segment.modality].append((segment[index : index + 1], place))
                    if segment.targets is not None and column > start:
                        supervised[segment.modality].append((segment.targets[index], place - 1))
                    column += 1
    return Batch(
        modality_ids,
        positions,
        document_ids,
        {name: _join(by_name[name], tokens[name], supervised[name]) for name in names},
        source,
    )


def _join(
    modality: Modality, tokens: list[tuple[Segment, int]], supervised: list[tuple[Tensor, int]]
) -> ModalityTokens:
    empty = modality.encode("" if isinstance(modality, ByteText) else [])
    segments = [empty, *(segment for segment, _ in tokens)]
    has_places, has_targets = empty.positions_2d is not None, empty.targets is not None
    return ModalityTokens(
        features=torch.cat([segment.features for segment in segments]),
        indices=torch.tensor([place for _, place in tokens], dtype=torch.int64),
        positions_2d=torch.cat([s.positions_2d for s in segments if s.positions_2d is not None])
        if has_places
        else None,
        targets=torch.cat([empty.targets, *(target[None] for target, _ in supervised)])
        if empty.targets is not None
        else None,
        source_indices=torch.tensor([source for _, source in supervised], dtype=torch.int64)
        if has_targets
        else None,
    )
