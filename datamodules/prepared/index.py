"""`ShardIndex`: what a shard holds and where its record batches stand, kept in a JSON file beside it.

Notable:
- It is written after the shard, so that a shard with an index is complete.
- A few numbers a record batch (about two megabytes of data) find any document or token, and check the
  batch that holds it: nothing else of a shard is ever in memory unasked.
- Numbers that contradict each other are refused; a wrong checksum in here shows as a damaged batch.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

INDEX_VERSION = 1
SHARD_SUFFIX = ".arrow"
INDEX_SUFFIX = ".json"
REMEDY = "restore it from a copy, or prepare the data set again"


class DamagedDataError(ValueError):
    """A file of a prepared data set is not as it was written; the message says which, and what to do."""


@dataclass(frozen=True)
class ModalityCount:
    """How much of one modality there is.

    Args:
        items: segments of it.
        tokens: of its texts.
        bytes: of its media.
    """

    items: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: ModalityCount) -> ModalityCount:
        return ModalityCount(self.items + other.items, self.tokens + other.tokens, self.bytes + other.bytes)


def summed(counts: Sequence[Mapping[str, ModalityCount]]) -> dict[str, ModalityCount]:
    """Counts by modality, added up; in alphabetical order."""
    total: dict[str, ModalityCount] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, ModalityCount()) + count
    return dict(sorted(total.items()))


@dataclass(frozen=True)
class BatchRecord:
    """One record batch.

    Args:
        start, bytes: its place in the file.
        crc32: of these bytes.
        documents, tokens: what it holds.
    """

    start: int
    bytes: int
    crc32: int
    documents: int
    tokens: int


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Counts, checksums and places of one shard.

    Args:
        name: of the shard's file.
        source: name of the corpus that all of its documents are from.
        bytes, sha256: of the whole file.
        documents, tokens: what it holds.
        modalities: counts by name.
        starts, sizes, checksums: [batches] byte range and CRC-32 of each record batch.
        document_ends, token_ends: [batches] documents and tokens in all batches up to and including each.
    """

    name: str
    source: str
    bytes: int
    sha256: str
    documents: int
    tokens: int
    modalities: dict[str, ModalityCount]
    starts: Sequence[int]
    sizes: Sequence[int]
    checksums: Sequence[int]
    document_ends: Sequence[int]
    token_ends: Sequence[int]

    @classmethod
    def read(cls, shard: Path) -> ShardIndex:
        """Read the index of a shard.

        Raises:
            FileNotFoundError: if it is not there.
            DamagedDataError: if it cannot be used.
        """
        path = index_path(shard)
        try:
            data = json.loads(path.read_bytes())
            version = data["version"]
            if version != INDEX_VERSION:
                raise DamagedDataError(
                    f"'{path}' has version {version}, this installation reads {INDEX_VERSION}: update it"
                )
            batches = data["batches"]
            index = cls(
                name=data["name"],
                source=data["source"],
                bytes=data["bytes"],
                sha256=data["sha256"],
                documents=data["documents"],
                tokens=data["tokens"],
                modalities={name: ModalityCount(**count) for name, count in data["modalities"].items()},
                starts=array("q", batches["start"]),
                sizes=array("q", batches["bytes"]),
                checksums=array("q", batches["crc32"]),
                document_ends=array("q", accumulate(batches["documents"])),
                token_ends=array("q", accumulate(batches["tokens"])),
            )
            consistent = index._consistent(shard.name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"'{path}', which belongs to '{shard}', is missing: {REMEDY}") from error
        except (
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            UnicodeDecodeError,
            json.JSONDecodeError,
        ) as error:
            raise DamagedDataError(f"'{path}' is damaged ({error!r}): {REMEDY}") from error
        if not consistent:
            raise DamagedDataError(f"'{path}' is damaged: its numbers contradict each other; {REMEDY}")
        return index

    def _consistent(self, name: str) -> bool:
        columns = (self.starts, self.sizes, self.checksums, self.document_ends, self.token_ends)
        ends = [start + size for start, size in zip(self.starts, self.sizes, strict=False)]
        return (
            len({len(column) for column in columns}) == 1
            and all(end <= start for end, start in zip([0, *ends], [*self.starts, self.bytes], strict=True))
            and all(size > 0 for size in self.sizes)
            and self.name == name
            and isinstance(self.source, str)
            and self.document_ends[-1:] == array("q", [self.documents])
            and self.token_ends[-1:] == array("q", [self.tokens])
            and sum(count.tokens for count in self.modalities.values()) == self.tokens
        )


def index_content(
    name: str,
    source: str,
    size: int,
    sha256: str,
    modalities: Mapping[str, ModalityCount],
    batches: Sequence[BatchRecord],
) -> bytes:
    """The JSON file that `ShardIndex.read` reads.

    Args:
        name, size, sha256: of the shard's file.
        source: of its documents.
        modalities: counts by name.
        batches: in the order of the file.
    """
    data: dict[str, Any] = {
        "version": INDEX_VERSION,
        "name": name,
        "source": source,
        "bytes": size,
        "sha256": sha256,
        "documents": sum(batch.documents for batch in batches),
        "tokens": sum(batch.tokens for batch in batches),
        "modalities": {key: asdict(count) for key, count in sorted(modalities.items())},
        "batches": {
            column: [getattr(batch, column) for batch in batches]
            for column in BatchRecord.__dataclass_fields__
        },
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def index_path(shard: Path) -> Path:
    """Where the index of a shard stands."""
    return shard.with_suffix(INDEX_SUFFIX)
