"""Damaged samples: skipped, counted, named - and a run of them stops the job.

Notable:
- Counts lie in shared memory, one row a loader worker, so that the main process can read totals
  while workers run and no lock is needed.
- Messages thin out (the first few, then each tenth, hundredth, ...): a corpus that is 1 % damaged
  does not fill the disk with logs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch.utils.data import get_worker_info

from onn_lightning.modality import BadSampleError

log = logging.getLogger(__name__)

_ALWAYS_NAMED = 10


class TooManyBadSamplesError(RuntimeError):
    """So many samples in a row are damaged that something else must be wrong."""


class BadSampleLog:
    """Counts the bad samples of each source.

    Args:
        sources: names of the sources.
        max_consecutive: bad samples in a row that one reader tolerates.
        num_workers: loader workers that may report; the main process reports as worker 0.
    """

    def __init__(self, sources: Sequence[str], max_consecutive: int, num_workers: int) -> None:
        self._columns = {name: column for column, name in enumerate(sources)}
        self._max_consecutive = max_consecutive
        self._counts = torch.zeros(max(1, num_workers), len(sources), dtype=torch.int64)
        self._counts.share_memory_()  # type: ignore[no-untyped-call]
        self._consecutive = 0

    def good(self) -> None:
        """A sample was read: the run of bad ones, if any, is over."""
        self._consecutive = 0

    def bad(self, source: str, item: str, error: BadSampleError) -> None:
        """Count and name a bad sample.

        Raises:
            TooManyBadSamplesError: if it is one too many in a row.
        """
        worker = get_worker_info()
        counts = self._counts[0 if worker is None else worker.id]
        counts[self._columns[source]] += 1
        total = int(counts.sum())
        message = str(error) if item in str(error) else f"{item}: {error}"
        if total <= _ALWAYS_NAMED or total % 10 ** (len(str(total)) - 1) == 0:
            log.warning("skipped bad sample %d, of source '%s': %s", total, source, message)
        self._consecutive += 1
        if self._consecutive > self._max_consecutive:
            raise TooManyBadSamplesError(
                f"{self._consecutive} bad samples in a row, the last in source '{source}': {message}; mend "
                "the data or raise `max_consecutive_bad`"
            )

    def totals(self) -> dict[str, int]:
        """Bad samples so far by source, over all workers of this process."""
        sums = self._counts.sum(0).tolist()
        return {name: int(sums[column]) for name, column in self._columns.items()}
