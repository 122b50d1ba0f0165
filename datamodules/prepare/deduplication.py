"""`Deduplication`: exact and near copies of documents, found over the whole corpus; the first one stays.

Notable:
- Built on datatrove's MinHash: its file format of signatures and its merge of sorted buckets. Ours are the
  signatures (`deduplication_signatures`: documents pass through a compiled loop; datatrove's step ends a
  pipeline and splits words with spaCy) and the clusters (`deduplication_clusters`: datatrove keeps whichever
  document its union-find made the root, which depends on the cut into tasks; here it is the first).
- An exact copy is one more bucket: a hash over all items, so that both kinds share one merge.
- Documents with media are compared exactly only: captions repeat.
- Near copies chain: where A is like B and B like C, only A stays, however little A and C have in common.
- Memory: a task holds a bucket of its own signatures; the last stage 32 bytes for every document that has
  a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets

from datamodules.prepare.configured import Configured
from datamodules.prepare.deduplication_clusters import ClusterStep, DropCopiesStep
from datamodules.prepare.deduplication_signatures import (
    HASH_BOUND,
    HASHES_PER_RECORD,
    SignatureStep,
)
from datamodules.prepare.step import RecordedStep

_SIGNATURES, _PAIRS = "signatures", "pairs"
_CORPUS_TASKS_PER_PART = 64
_RECORDS_BUFFERED = 1024
_OTHER_OPEN_FILES = 64


@dataclass(frozen=True)
class DedupStage:
    """A part of the deduplication that must be complete before the next begins.

    Args:
        name: of the stage, for logs and completion marks.
        steps: what each of its tasks runs.
        tasks: how many; depends on the corpus and the settings alone.
    """

    name: str
    steps: list[PipelineStep]
    tasks: int


class Deduplication(Configured):
    """Which documents count as copies.

    Two texts with a share s of common n-grams (Jaccard) are found with probability
    1 - (1 - s ** hashes_per_bucket) ** num_buckets; by default 0.05 at s = 0.5, 0.56 at 0.7, 0.92 at 0.8,
    0.9996 at 0.9 (the values of FineWeb, arXiv 2406.17557).

    Args:
        near: find near copies too; False: exact ones only.
        ngram: words in an n-gram, every Han or kana character being a word; shorter texts are compared
            exactly only.
        num_buckets: how many chances a pair has to be found.
        hashes_per_bucket: how many minimal hashes must agree for that.
        seed: of the hash functions.
    Raises:
        ValueError: if a number is below 1.
    Source: Broder 1997, "On the resemblance and containment of documents"; hash functions ours.
    """

    def __init__(
        self,
        near: bool = True,
        ngram: int = 5,
        num_buckets: int = 14,
        hashes_per_bucket: int = 8,
        seed: int = 1,
    ) -> None:
        for name, value in (
            ("ngram", ngram),
            ("num_buckets", num_buckets),
            ("hashes_per_bucket", hashes_per_bucket),
        ):
            if value < 1:
                raise ValueError(f"Deduplication: {name} is {value}, it must be at least 1")
        self.ngram = ngram
        self.num_buckets = num_buckets if near else 0
        self.hashes_per_bucket = hashes_per_bucket
        self.seed = seed

    def signature_steps(self, folder: Path) -> list[PipelineStep]:
        """Last steps of the collecting stage: pass documents through and write their signatures.

        Args:
            folder: of the deduplication's own files; the same in all three methods.
        """
        return [
            SignatureStep(
                folder / _SIGNATURES, self.ngram, self.num_buckets, self.hashes_per_bucket, self.seed
            )
        ]

    def stages(self, folder: Path, tasks: int) -> list[DedupStage]:
        """What runs, in this order, when all signatures are written.

        Args:
            folder: as above.
            tasks: number of tasks of the collecting stage.
        """
        buckets = self.num_buckets + 1
        parts = -(-max(1, tasks) // _CORPUS_TASKS_PER_PART)
        pairs = PairStep(folder / _SIGNATURES, folder / _PAIRS, buckets)
        clusters = ClusterStep(folder / _PAIRS, folder, num_files=buckets * parts, exact_bucket=buckets - 1)
        return [DedupStage("pairs", [pairs], buckets * parts), DedupStage("clusters", [clusters], 1)]

    def drop_step(self, folder: Path) -> RecordedStep:
        """First step after reading the collected documents again, in the same tasks and order."""
        return DropCopiesStep(folder)


class PairStep(MinhashDedupBuckets):  # type: ignore[misc]  # datatrove is not typed
    """Finds equal signatures: merges the sorted files of one bucket, a range of hashes a task.

    Args:
        signatures: folder that `SignatureStep` wrote.
        pairs: folder to write pairs of documents to.
        num_buckets: the exact one included.
    """

    name = "pairs of copies"

    def __init__(self, signatures: Path, pairs: Path, num_buckets: int) -> None:
        config = MinhashConfig(num_buckets=num_buckets, hashes_per_bucket=HASHES_PER_RECORD)
        super().__init__(str(signatures), str(pairs), config=config, lines_to_buffer=_RECORDS_BUFFERED)

    def get_worker_hash_range(self, sig_files: list[str], rank: int, world_size: int) -> tuple[int, int]:
        """An even share of the hashes, which are uniform; datatrove takes the ranges from one file."""
        parts = world_size // self.config.num_buckets
        part = rank % parts
        return HASH_BOUND * part // parts, HASH_BOUND * (part + 1) // parts

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Merge all files at once: one open file a task of the corpus.

        Raises:
            RuntimeError: if the system does not allow that many open files.
        """
        import resource  # not on Windows

        bucket = rank // (world_size // self.config.num_buckets)
        needed = len(self.input_folder.list_files(subdirectory=f"bucket_{bucket:03d}")) + _OTHER_OPEN_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and needed > soft:
            if hard != resource.RLIM_INFINITY and needed > hard:
                raise RuntimeError(
                    f"deduplication must open {needed} files at once, the system allows {hard}: raise the "
                    "limit (`ulimit -Hn`), or prepare with larger tasks"
                )
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        super().run(data, rank, world_size)
