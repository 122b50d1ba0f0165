"""Documents as rows of an Arrow record batch: how a batch is built, and how it is read without Arrow.

A row is `id`, `segments` (modality, supervised, kind of data, tokens), `tokens` of all its texts one behind
the other, `media` in their compressed form and `values` as JSON, each in reading order.

Notable:
- A document goes in as it comes out: `("text", Encoding, supervised)`, `("image", bytes, supervised)`,
  `("series", value, supervised)`; what kind of data an item has is seen from its type.
- Reading takes the flat buffers of a batch as numpy views once; a document is then a few slices of them.
- Offsets are checked when the views are taken, so that no later slice can leave the buffers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datamodules.prepared.layout import BYTES_PER_TOKEN, PackedTokens, TokenLayout
from datamodules.text.tokenizer import Encoding

TEXT, MEDIUM, VALUE = 0, 1, 2
"""Kinds of data of a segment."""

EncodedDocument = list[tuple[str, Any, bool]]
"""(modality, `Encoding` or media bytes or plain JSON, supervised), in reading order."""

Array = npt.NDArray[Any]

_MAX_TOKENS = (1 << 31) - 1
_BYTES_PER_ROW = 40  # offsets and a segment


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_required("item", kind))


_TOKEN = pa.struct(
    [_required("char", pa.uint16()), _required("word_low", pa.uint16()), _required("word_high", pa.uint8())]
)
_SEGMENT = pa.struct(
    [
        _required("modality", pa.string()),
        _required("supervised", pa.uint8()),
        _required("kind", pa.uint8()),
        _required("tokens", pa.uint32()),
    ]
)
SCHEMA = pa.schema(
    [
        _required("id", pa.string()),
        _required("segments", _list_of(_SEGMENT)),
        _required("tokens", _list_of(_TOKEN)),
        _required("media", _list_of(pa.large_binary())),
        _required("values", _list_of(pa.string())),
    ]
)


@dataclass
class RowBuilder:
    """Documents waiting to become a record batch.

    Args:
        layout: how tokens are packed.
    """

    layout: TokenLayout
    size: int = 0
    """Bytes of the rows, about."""
    tokens: int = 0
    ids: list[str] = field(default_factory=list)
    _segments: list[tuple[str, bool, int, int]] = field(default_factory=list)
    _texts: list[PackedTokens] = field(default_factory=list)
    _media: list[bytes] = field(default_factory=list)
    _values: list[str] = field(default_factory=list)
    _ends: list[tuple[int, int, int, int]] = field(default_factory=lambda: [(0, 0, 0, 0)])

    def add(self, document_id: str, document: EncodedDocument) -> None:
        """Add a row; a document that cannot be stored leaves no trace.

        Raises:
            PackingError: if a text cannot be packed.
            TypeError: if a value is not plain JSON.
            ValueError: if the document has more tokens than a row can hold.
        """
        segments: list[tuple[str, bool, int, int]] = []
        texts: list[PackedTokens] = []
        media: list[bytes] = []
        values: list[str] = []
        for modality, data, supervised in document:
            if isinstance(data, Encoding):
                texts.append(self.layout.pack(data))
                segments.append((modality, supervised, TEXT, len(data)))
            elif isinstance(data, bytes):
                media.append(data)
                segments.append((modality, supervised, MEDIUM, 0))
            else:
                values.append(json.dumps(data, separators=(",", ":")))
                segments.append((modality, supervised, VALUE, 0))
        tokens = sum(map(len, texts))
        if tokens > _MAX_TOKENS:
            raise ValueError(f"document {document_id!r} has {tokens:,} tokens, a row holds 2^31: divide it")
        self._segments += segments
        self._texts += texts
        self._media += media
        self._values += values
        self.tokens += tokens
        self._ends.append((len(self._segments), self.tokens, len(self._media), len(self._values)))
        # names of files may hold bytes that are no text
        self.ids.append(document_id.encode("utf-8", "backslashreplace").decode())
        self.size += tokens * BYTES_PER_TOKEN + sum(map(len, media)) + sum(map(len, values))
        self.size += len(document_id) + len(segments) * _BYTES_PER_ROW

    def build(self) -> pa.RecordBatch:
        """The rows added so far."""
        modalities, supervised, kinds, lengths = (
            zip(*self._segments, strict=True) if self._segments else [()] * 4
        )
        segments = [
            pa.array(modalities, pa.string()),
            pa.array(np.array(supervised, np.uint8)),
            pa.array(np.array(kinds, np.uint8)),
            pa.array(np.array(lengths, np.uint32)),
        ]
        tokens = [
            pa.array(_joined([text.char for text in self._texts], np.uint16)),
            pa.array(_joined([text.word_low for text in self._texts], np.uint16)),
            pa.array(_joined([text.word_high for text in self._texts], np.uint8)),
        ]
        columns = [
            pa.StructArray.from_arrays(segments, fields=list(_SEGMENT)),
            pa.StructArray.from_arrays(tokens, fields=list(_TOKEN)),
            pa.array(self._media, pa.large_binary()),
            pa.array(self._values, pa.string()),
        ]
        ends = np.array(self._ends, np.int32)
        lists = [
            pa.ListArray.from_arrays(pa.array(ends[:, number]), column, type=SCHEMA.field(1 + number).type)
            for number, column in enumerate(columns)
        ]
        return pa.RecordBatch.from_arrays([pa.array(self.ids, pa.string()), *lists], schema=SCHEMA)


@dataclass(frozen=True, eq=False)
class Rows:
    """A record batch as flat numpy views; made by `of`.

    Args:
        id_ends, segment_ends, media_ends, value_ends: [rows + 1] where the parts of each row end in the flat
            columns, beginning with 0.
        ids: [bytes] UTF-8.
        modalities: distinct names.
        modality: [segments] index into `modalities`.
        supervised, kind: [segments].
        segment_bounds: [segments + 1] where each segment's tokens begin.
        tokens: of the whole batch.
        medium_ends, value_bounds: [media + 1], [values + 1] where each begins in the bytes.
        media, values: [bytes].
    """

    id_ends: Array
    ids: Array
    segment_ends: Array
    modalities: tuple[str, ...]
    modality: Array
    supervised: Array
    kind: Array
    segment_bounds: Array
    tokens: PackedTokens
    media_ends: Array
    medium_bounds: Array
    media: Array
    value_ends: Array
    value_bounds: Array
    values: Array

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Rows:
        """Take the views.

        Raises:
            ValueError: if the batch is not in the form that `RowBuilder` makes.
        """
        if not batch.schema.equals(SCHEMA):
            raise ValueError(f"its columns are {batch.schema.to_string()!r}")
        batch.validate(full=True)
        ids, segments, tokens, media, values = batch.columns
        modality = segments.values.field("modality").dictionary_encode()
        packed = [_flat(tokens.values.field(name)) for name in ("char", "word_low", "word_high")]
        segment_ends = _ends(segments)
        lengths = _flat(segments.values.field("tokens"))
        segment_bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        if not np.array_equal(segment_bounds[segment_ends], _ends(tokens)):
            raise ValueError("its segments do not add up to its tokens")
        return cls(
            id_ends=_ends(ids),
            ids=_bytes(ids),
            segment_ends=segment_ends,
            modalities=tuple(modality.dictionary.to_pylist()),
            modality=_flat(modality.indices),
            supervised=_flat(segments.values.field("supervised")),
            kind=_flat(segments.values.field("kind")),
            segment_bounds=segment_bounds,
            tokens=PackedTokens(*packed),
            media_ends=_ends(media),
            medium_bounds=_ends(media.values, np.int64),
            media=_bytes(media.values),
            value_ends=_ends(values),
            value_bounds=_ends(values.values),
            values=_bytes(values.values),
        )

    def __len__(self) -> int:
        return len(self.id_ends) - 1

    def id(self, row: int) -> str:
        """Where the document stood in the corpus."""
        return self.ids[self.id_ends[row] : self.id_ends[row + 1]].tobytes().decode()

    def document(self, row: int, layout: TokenLayout) -> EncodedDocument:
        """One document; its texts are unpacked, its media copied."""
        document: EncodedDocument = []
        medium, value = int(self.media_ends[row]), int(self.value_ends[row])
        for segment in range(int(self.segment_ends[row]), int(self.segment_ends[row + 1])):
            kind = self.kind[segment]
            data: Any
            if kind == TEXT:
                start, stop = self.segment_bounds[segment], self.segment_bounds[segment + 1]
                data = layout.unpack(self.tokens, int(start), int(stop))
            elif kind == MEDIUM:
                data = self.media[self.medium_bounds[medium] : self.medium_bounds[medium + 1]].tobytes()
                medium += 1
            else:
                content = self.values[self.value_bounds[value] : self.value_bounds[value + 1]]
                data = json.loads(content.tobytes())
                value += 1
            document.append((self.modalities[self.modality[segment]], data, bool(self.supervised[segment])))
        return document

    def rows_with(self, modality: str) -> list[int]:
        """Rows that hold a segment of a modality."""
        if modality not in self.modalities:
            return []
        segments = np.flatnonzero(self.modality == self.modalities.index(modality))
        return np.unique(np.searchsorted(self.segment_ends, segments, side="right") - 1).tolist()


def _joined(arrays: list[Array], dtype: type) -> Array:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


def _flat(array: pa.Array) -> Array:
    """A view of a column of numbers."""
    return array.to_numpy(zero_copy_only=True)


def _ends(array: pa.Array, dtype: type = np.int32) -> Array:
    """[n + 1] offsets of a column of lists or strings."""
    offsets = array.buffers()[1]
    return np.zeros(1, dtype) if not offsets else np.frombuffer(offsets, dtype)[: len(array) + 1]


def _bytes(array: pa.Array) -> Array:
    """[bytes] content of a column of strings or binaries."""
    content = array.buffers()[2]
    return np.empty(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)
