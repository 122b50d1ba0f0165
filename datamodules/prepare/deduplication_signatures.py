"""`SignatureStep`: what deduplication remembers of a document - one hash of everything, and its MinHash.

Notable:
- Files are datatrove's: one a bucket and task, records of two 61-bit hashes and the document's number in its
  task, sorted. Its 8 minimal hashes of a bucket are hashed to those two: only equality matters.
- Near copies are compared by n-grams of `filters.words`, which know no case, width, punctuation or space:
  Chinese by characters, English by words, a mixed text by both.
- Records go to disk while documents pass; the last document sorts them, one bucket at a time. A task that
  is killed and run again overwrites its own files with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from datamodules.prepare.document import Item, unpack
from datamodules.prepare.filters.words import Hashes, mix, ngram_hashes, words_of
from onn_lightning.compiled import kernel

HASHES_PER_RECORD = 2
HASH_BOUND = (1 << 61) - 1
"""Hashes are below this: datatrove's merge reads 64-bit hashes up to this prime."""

_RECORD = np.dtype([("first", "<u8"), ("second", "<u8"), ("document", "<u4")])
_DOCUMENTS_BUFFERED = 4096
_LARGEST = np.uint64(2**64 - 1)
_BASES = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], dtype=np.uint64)
_SHIFT = np.uint64(32)
_BOUND = np.uint64(HASH_BOUND)


class SignatureStep(PipelineStep):  # type: ignore[misc]  # datatrove is not typed
    """Passes documents through and writes their signatures.

    Args:
        folder: to write to: `bucket_000/00000.minhash.sig`, ...; the last bucket is that of exact copies.
        ngram: words in an n-gram.
        num_buckets: of near copies.
        hashes_per_bucket: minimal hashes in a bucket.
        seed: of the hash functions.
    """

    type = "onn"
    name = "signatures"

    def __init__(self, folder: Path, ngram: int, num_buckets: int, hashes_per_bucket: int, seed: int) -> None:
        super().__init__()
        self.folder = folder
        self.ngram = ngram
        self.num_buckets = num_buckets
        generator = np.random.Generator(np.random.PCG64(seed))
        size = (2, num_buckets, hashes_per_bucket)
        self._factors, self._terms = generator.integers(2**64, size=size, dtype=np.uint64)
        self._factors |= np.uint64(1)

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """datatrove's entry: one task."""
        unsorted = self.folder.parent / "unsorted" / f"{rank:05d}"
        unsorted.mkdir(parents=True, exist_ok=True)
        paths = [unsorted / f"{bucket:03d}" for bucket in range(self.num_buckets + 1)]
        buffer = np.empty((_DOCUMENTS_BUFFERED, self.num_buckets + 1), dtype=_RECORD)
        present = np.zeros(buffer.shape, dtype=bool)
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]

            def flush() -> None:
                for bucket, file in enumerate(files):
                    file.write(buffer[present[:, bucket], bucket].tobytes())
                present[:] = False

            for number, document in enumerate(data):
                place = number % len(buffer)
                with self.track_time():
                    items = unpack(document)
                    signature = self._near_signature(items, document.text)
                    row = buffer[place]
                    row["document"] = number
                    row["first"][-1], row["second"][-1] = exact_hashes(items)
                    present[place, -1] = True
                    if signature is not None:
                        row["first"][:-1], row["second"][:-1] = signature
                        present[place, :-1] = True
                    if place == len(buffer) - 1:
                        flush()
                self.stat_update("total")
                yield document
            flush()
        for bucket, path in enumerate(paths):
            self._write_sorted(path, self.folder / f"bucket_{bucket:03d}" / f"{rank:05d}.minhash.sig")
        unsorted.rmdir()

    def _near_signature(self, items: Sequence[Item], text: str) -> Hashes | None:
        """[2, num_buckets] hashes of the buckets; None for a document that is compared exactly only."""
        if not self.num_buckets or any(item.text is None for item in items):
            return None
        ngrams = ngram_hashes(words_of(text), self.ngram)
        return bucket_hashes(ngrams, self._factors, self._terms) if len(ngrams) else None

    def _write_sorted(self, unsorted: Path, path: Path) -> None:
        records = np.fromfile(unsorted, dtype=_RECORD)
        order = np.lexsort((records["document"], records["second"], records["first"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = unsorted.with_suffix(".sorted")
        records[order].tofile(beside)
        os.replace(beside, path)
        unsorted.unlink()


def exact_hashes(items: Iterable[Item]) -> tuple[int, int]:
    """Two numbers below `HASH_BOUND` that are equal for equal documents only (122 bits of BLAKE2b).

    Items are equal if modality, content and supervision are; what a medium's file is called does not
    matter.
    """
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        if item.text is not None:
            form, content = "text", item.text.encode("utf-8", errors="surrogatepass")
        elif item.media is not None:
            form, content = "media", item.media
        else:
            form, content = "value", json.dumps(item.value, sort_keys=True).encode()
        head = json.dumps([item.modality, item.supervised, form, len(content)])
        digest.update(head.encode() + b"\n")
        digest.update(content)
    first, second = np.frombuffer(digest.digest(), dtype="<u8").tolist()
    return first % HASH_BOUND, second % HASH_BOUND


def bucket_hashes(ngrams: Hashes, factors: Hashes, terms: Hashes) -> Hashes:
    """[2, buckets] hashes below `HASH_BOUND`, equal for texts whose minimal hashes of a bucket are equal.

    Args:
        ngrams: [n] hashes, at least one.
        factors, terms: [buckets, hashes] of the functions factor * x + term modulo 2^64.
    """
    hashes = np.empty((2, len(factors)), dtype=np.uint64)
    _hash_minima(_minima(mix(ngrams), factors.ravel(), terms.ravel()), hashes)
    return hashes


@kernel
def _minima(ngrams: Hashes, factors: Hashes, terms: Hashes) -> Hashes:
    """[functions] the smallest value of each function."""
    minima = np.full(len(factors), _LARGEST, dtype=np.uint64)
    for i in range(len(ngrams)):
        ngram = ngrams[i]
        for j in range(len(factors)):
            minima[j] = min(minima[j], factors[j] * ngram + terms[j])
    return minima


@kernel
def _hash_minima(minima: Hashes, hashes: Hashes) -> None:
    """Write two hashes of every bucket's minima: polynomials in two bases, scrambled by a xorshift."""
    buckets = hashes.shape[1]
    per_bucket = len(minima) // buckets
    for kind in range(2):
        for bucket in range(buckets):
            value = _LARGEST
            for minimum in minima[bucket * per_bucket : (bucket + 1) * per_bucket]:
                value = (value ^ minimum) * _BASES[kind]
                value ^= value >> _SHIFT
            hashes[kind, bucket] = value % _BOUND
