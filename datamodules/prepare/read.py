"""`ReadStep`: the first step of a task: the documents of its units, bad samples counted and named.

Notable:
- What is counted depends on the corpus alone; progress, which depends on the clock, goes elsewhere.
- Messages thin out (the first few of a task, then each tenth, hundredth, ...): a corpus that is 1 %
  damaged does not fill the disk with logs. The record keeps examples of every kind.
- A run of bad samples stops the job: something else must be wrong, a column's name perhaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from datatrove.data import Document
from datatrove.utils.logging import logger

from datamodules.bad_samples import TooManyBadSamplesError
from datamodules.prepare.plan import SourceUnit
from datamodules.prepare.progress import Progress, ProgressFile
from datamodules.prepare.readers.base import BadSample, Reader
from datamodules.prepare.records import StepRecord
from datamodules.prepare.step import RecordedStep

_ALWAYS_NAMED = 10


class ReadStep(RecordedStep):
    """Reads the units of one task after the other.

    Args:
        sources: readers by the names that the plan uses.
        units_of_task: of a task's number: what it reads; `partial(plan.units_of_task, path)`.
        progress_folder: where tasks report how far they are; None: they do not.
        max_consecutive_bad: bad samples in a row that a task tolerates.
    Raises:
        ValueError: if the number is negative.
    """

    name = "read"

    def __init__(
        self,
        sources: Mapping[str, Reader],
        units_of_task: Callable[[int], Iterable[SourceUnit]],
        progress_folder: Path | None = None,
        max_consecutive_bad: int = 100,
    ) -> None:
        super().__init__()
        if max_consecutive_bad < 0:
            raise ValueError(f"max_consecutive_bad is {max_consecutive_bad}, it must be at least 0")
        self.sources = sources
        self.units_of_task = units_of_task
        self.progress_folder = progress_folder
        self.max_consecutive_bad = max_consecutive_bad

    def process(self, documents: Iterable[Document], record: StepRecord, task: int) -> Iterator[Document]:
        """Read; `documents` is empty, since nothing comes before.

        Raises:
            TooManyBadSamplesError: if there is one bad sample too many in a row.
            CorpusChangedError: if a unit is no longer what was planned.
        """
        progress = None if self.progress_folder is None else ProgressFile(self.progress_folder, task)
        done = consecutive = 0  # bytes of the units that are done; bad samples in a row
        for source, unit in self.units_of_task(task):
            reader = self.sources[source]
            reader.bytes_read = 0
            for sample in reader.read(unit, source):
                if progress is not None and progress.due:
                    progress.report(Progress(done + min(reader.bytes_read, unit.size), record.kept))
                if isinstance(sample, BadSample):
                    consecutive += 1
                    self._bad(sample, record, task, source, consecutive)
                    continue
                consecutive = 0
                record.kept += 1
                self.stat_update("documents")
                yield sample
            done += unit.size
        if progress is not None:
            progress.report(Progress(done, record.kept))

    def _bad(self, sample: BadSample, record: StepRecord, task: int, source: str, consecutive: int) -> None:
        record.drop(sample.kind, sample.where, sample.message)
        self.stat_update("bad samples", f"bad samples: {sample.kind}")
        total = record.dropped.total()
        described = f"{sample.where}: {sample.kind}: {sample.message}"
        if total <= _ALWAYS_NAMED or total % 10 ** (len(str(total)) - 1) == 0:
            logger.warning(f"task {task}: skipped bad sample {total}: {described}")
        if consecutive > self.max_consecutive_bad:
            raise TooManyBadSamplesError(
                f"{consecutive} bad samples in a row in task {task}, the last in source '{source}': "
                f"{described}; mend the data or the source's config, or raise `max_consecutive_bad`"
            )
