"""`RecordedStep`: a datatrove step that keeps a `StepRecord`, and `Filter`, which drops documents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from datamodules.prepare.configured import Configured
from datamodules.prepare.records import StepRecord


class RecordedStep(Configured, PipelineStep):  # type: ignore[misc]  # datatrove is not typed
    """A step whose counts go into the manifest.

    Subclasses set `name` and do their work in `process`; the pipeline calls `record_to` before it runs.
    """

    type = "onn"

    def __init__(self) -> None:
        super().__init__()
        self.records_folder: Path | None = None
        self.order = 0

    def record_to(self, folder: Path, order: int) -> None:
        """Where the record of every task is written, and the step's place in the pipeline."""
        self.records_folder, self.order = folder, order

    @abstractmethod
    def process(self, documents: Iterable[Document], record: StepRecord, task: int) -> Iterator[Document]:
        """Handle the documents of one task.

        Args:
            documents: of the step before; empty for a first step.
            record: to count in; written when the last document has gone through.
            task: number of the task.
        """

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """datatrove's entry: one task."""
        record = StepRecord(self.name)
        yield from self.process(data or (), record, rank)
        if self.records_folder is not None:
            record.save(self.records_folder, self.order, rank)


class Filter(RecordedStep):
    """Drops documents for a stated reason; chosen by `class_path` in a config's `filters`.

    Subclasses set `name` and implement `judge`; it must depend on the document alone, so that the
    result is the same whatever the number of tasks and workers.
    """

    @abstractmethod
    def judge(self, document: Document) -> str | None:
        """A short reason to drop the document (it is counted by it), or None to keep it."""

    def process(self, documents: Iterable[Document], record: StepRecord, task: int) -> Iterator[Document]:
        """Judge one by one."""
        for document in documents:
            with self.track_time():
                reason = self.judge(document)
            self.stat_update("total", "forwarded" if reason is None else "dropped")
            if reason is None:
                record.kept += 1
                yield document
            else:
                record.drop(reason, document.id, document.text)
