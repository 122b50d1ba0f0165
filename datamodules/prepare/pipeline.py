"""`Preparation`: from raw corpora to a prepared data set; what a config of `onn prepare` describes.

Stages, each of which must be complete before the next begins:

    collect    read -> filters -> kept documents, and their signatures for the deduplication
    ...        those of the deduplication
    tokenize   kept documents -> without copies -> shards

Without deduplication there is one stage, in which documents go straight from the reader to the shards.
Then the manifest is written, and the data set gets its name.

Notable:
- The bytes of the result depend on the corpus and the config: not on workers, executor, machine or time,
  and not on how often the preparation was killed and resumed.
- What cannot work is found before hours are spent: the tokenizer is made and the whole corpus listed at
  the start.
- An output that exists is complete, and is never touched: `overwrite` replaces it at the very end.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datatrove.pipeline.base import PipelineStep

from datamodules.prepare.deduplication import Deduplication
from datamodules.prepare.executors import Executor, LocalExecutor, PreparationError, Stage
from datamodules.prepare.intermediate import ReadKept, WriteKept
from datamodules.prepare.pipeline_folder import WorkFolder
from datamodules.prepare.pipeline_identity import description, first_difference, with_contents
from datamodules.prepare.pipeline_summary import Summary, summarised
from datamodules.prepare.plan import Plan, refuse_changes, sizes_of_tasks, units_of_task, write_plan
from datamodules.prepare.progress_bar import ProgressBar
from datamodules.prepare.read import ReadStep
from datamodules.prepare.readers.base import Reader
from datamodules.prepare.readers.files import TOP
from datamodules.prepare.records import merged_records
from datamodules.prepare.step import Filter, RecordedStep
from datamodules.prepare.tokenize import TokenizeStep
from datamodules.prepared.assembly import write_manifest
from datamodules.prepared.durable import write_durably
from datamodules.prepared.layout import TokenLayout
from datamodules.prepared.manifest import MANIFEST_NAME, SHARDS_FOLDER, Manifest
from datamodules.prepared.writer import MAX_SHARD_BYTES
from datamodules.text.tokenizer import DualTokenizer

COLLECT, TOKENIZE = "collect", "tokenize"
_REPLANNED = "replanned"


@dataclass(frozen=True)
class TokenizerArguments:
    """Which tokenizer encodes the texts; training must use the same.

    Args:
        vocabulary: path of a `tokenizer.json` of characters; None: the built-in inventory.
        words: path of a word list in jieba's format; None: jieba's dictionary.
        user_words: path of words to add or change.
        max_words: keep this many words; None: all.
        hashed_words: word ids that rare and unknown words share by their hash.
    """

    vocabulary: str | None = None
    words: str | None = None
    user_words: str | None = None
    max_words: int | None = None
    hashed_words: int = 0


class Preparation:
    """All that makes a prepared data set out of raw corpora.

    Args:
        output: folder to make.
        sources: the corpora by name, in the order in which their documents shall stand in the result.
        filters: judge every document, in this order; what one drops the next does not see.
        deduplication: which documents count as copies; None: all stay.
        tokenizer: which one encodes the texts.
        executor: where the tasks run; None: in processes of this machine, one a CPU.
        task_bytes: bytes of the corpus that one task reads. A task is what is done again after a kill,
            and begins a shard of its own.
        shard_bytes: a shard is closed when it is at least this large.
        max_consecutive_bad: bad samples in a row in one source that stop the job: something else must be
            wrong then.
    Raises:
        ValueError: if there is no source, no name of an output, or a number is not positive.
    """

    def __init__(
        self,
        output: str | Path,
        sources: Mapping[str, Reader],
        filters: Sequence[Filter] | None = None,
        deduplication: Deduplication | None = None,
        tokenizer: TokenizerArguments = TokenizerArguments(),  # frozen
        executor: Executor | None = None,
        task_bytes: int = 64 << 20,
        shard_bytes: int = MAX_SHARD_BYTES,
        max_consecutive_bad: int = 100,
    ) -> None:
        if not sources:
            raise ValueError("`sources` is empty: name at least one corpus to prepare")
        for name in ("task_bytes", "shard_bytes", "max_consecutive_bad"):
            if locals()[name] < 1:
                raise ValueError(f"`{name}` must be at least 1, got {locals()[name]}")
        self.output = Path(output)
        if self.output.name in ("", ".."):
            raise ValueError(f"`output` is '{output}': name the folder that shall be made")
        self.sources = dict(sources)
        self.filters = list(filters or ())
        self.deduplication = deduplication
        self.tokenizer = tokenizer
        self.executor = executor or LocalExecutor()
        self.task_bytes, self.shard_bytes = task_bytes, shard_bytes
        self.max_consecutive_bad = max_consecutive_bad

    def run(self, resume: bool = False, overwrite: bool = False) -> Summary:
        """Prepare the data set.

        Args:
            resume: go on with what an earlier run of the same config left; start where there is nothing.
            overwrite: replace an existing output, once the new one is complete.
        Raises:
            PreparationError: if the output is there or another process prepares it; if a task failed or its
                worker died.
            FileNotFoundError, PermissionError, ValueError: if the corpus, the tokenizer or the config cannot
                be used, or have changed since the run that is to be resumed.
            OSError: if the output cannot be written.
        """
        started = time.monotonic()
        self._refuse_foreign_output()
        tokenizer = DualTokenizer(**asdict(self.tokenizer))
        TokenLayout.of(tokenizer)  # refuses what shards cannot hold
        config = self._config(tokenizer)
        with WorkFolder(self.output) as work:
            just_completed = work.published
            if just_completed:
                work.clear()
            if self._is_complete() and (not overwrite or (just_completed and resume)):
                return self._report_complete(config, resume)
            plan = self._begin_or_go_on(work, config, resume, overwrite)
            stages = self._stages(work, plan)
            shutil.rmtree(work.progress, ignore_errors=True)  # of tasks that were killed
            with ProgressBar(len(stages), work.progress) as progress:
                self.executor.run(stages, work.stages, progress)
            records = [
                record.to_json() for record in merged_records(work.path / "records", range(plan.tasks))
            ]
            corpus = {"units": plan.units, "bytes": plan.size, "tasks": plan.tasks, "digest": plan.digest}
            manifest = write_manifest(
                work.result, tokenizer, list(self.sources), records, {**config, "corpus": corpus}
            )
            if not manifest.documents:
                raise PreparationError(f"nothing is left of the corpus: {_most_dropped(records)}")
            work.publish()
        return summarised(self.output, manifest, time.monotonic() - started)

    def _config(self, tokenizer: DualTokenizer) -> dict[str, Any]:
        """What the result depends on, but for the corpus itself."""
        return {
            "onn_lightning": version("onn-lightning"),
            "sources": description(self.sources),
            "filters": with_contents(description(self.filters)),
            "deduplication": description(self.deduplication),
            "tokenizer": {**asdict(self.tokenizer), "fingerprint": tokenizer.fingerprint},
            "task_bytes": self.task_bytes,
            "shard_bytes": self.shard_bytes,
        }

    def _is_complete(self) -> bool:
        return (self.output / MANIFEST_NAME).exists()

    def _refuse_foreign_output(self) -> None:
        if self.output.is_dir() and not self._is_complete() and any(self.output.iterdir()):
            raise PreparationError(
                f"'{self.output}' holds files that are no prepared data set: choose another --output"
            )
        if self.output.exists() and not self.output.is_dir():
            raise PreparationError(f"'{self.output}' is a file: choose another --output")

    def _report_complete(self, config: dict[str, Any], resume: bool) -> Summary:
        if not resume:
            raise PreparationError(
                f"'{self.output}' is a prepared data set already: choose another --output, or replace it "
                "with --overwrite"
            )
        manifest = Manifest.read(self.output)
        before = dict(manifest.config)
        corpus = before.pop("corpus", {})
        difference = first_difference(before, config)
        if difference is None:
            with TemporaryDirectory() as folder:
                plan = write_plan(self.sources, Path(folder), self.task_bytes)
            if plan.digest != corpus.get("digest"):
                difference = f"the corpus had {corpus.get('bytes')} bytes, now it has {plan.size}"
        if difference is not None:
            raise PreparationError(
                f"'{self.output}' is complete, but was prepared otherwise ({difference}): choose another "
                "--output, or replace it with --overwrite"
            )
        return summarised(self.output, manifest, seconds=None)

    def _begin_or_go_on(
        self, work: WorkFolder, config: dict[str, Any], resume: bool, overwrite: bool
    ) -> Plan:
        if work.begun and resume:
            difference = first_difference(json.loads(work.config.read_bytes()), config)
            if difference is not None:
                raise PreparationError(
                    f"the config is not the one that '{work.path}' was begun with: {difference}; change it "
                    "back, or start anew with --overwrite"
                )
            again = work.path / _REPLANNED
            again.mkdir(exist_ok=True)
            plan = write_plan(self.sources, again, self.task_bytes)
            if not filecmp.cmp(work.path / plan.path.name, plan.path, shallow=False):
                refuse_changes(work.path / plan.path.name, plan.path)
            return Plan(**{**vars(plan), "path": work.path / plan.path.name})
        if work.begun and not overwrite:
            raise PreparationError(
                f"'{work.path}' holds an unfinished preparation: go on with --resume, or start anew with "
                "--overwrite"
            )
        work.clear()
        work.result.mkdir()
        plan = write_plan(self.sources, work.path, self.task_bytes)
        write_durably(work.config, json.dumps(config).encode())
        return plan

    def _stages(self, work: WorkFolder, plan: Plan) -> list[Stage]:
        sizes = [max(1, size) for size in sizes_of_tasks(plan.path)]
        units = partial(units_of_task, plan.path)
        steps = _Steps(work.path / "records")
        first = COLLECT if self.deduplication is not None else TOKENIZE
        read = ReadStep(self.sources, units, work.progress / first, self.max_consecutive_bad)
        tokenize = TokenizeStep(
            work.result / SHARDS_FOLDER, **asdict(self.tokenizer), max_shard_bytes=self.shard_bytes
        )

        def subject(task: int) -> str:
            (source, unit), *others = units(task)
            named = source if unit.path == TOP else f"{source}: {unit.path}"
            return f"{named} and {len(others)} more" if others else named

        if self.deduplication is None:
            return [Stage(TOKENIZE, steps.recorded([read, *self.filters, tokenize]), sizes, subject)]
        kept, copies = work.path / "kept", work.path / "copies"
        signatures = self.deduplication.signature_steps(copies)
        collect = steps.recorded([read, *self.filters, WriteKept(kept), *signatures])
        between = [
            Stage(stage.name, stage.steps, [1] * stage.tasks, lambda task: "")
            for stage in self.deduplication.stages(copies, plan.tasks)
        ]
        read_again = ReadKept(kept, units, work.progress / TOKENIZE)
        last = steps.recorded([read_again, self.deduplication.drop_step(copies), tokenize])
        return [Stage(COLLECT, collect, sizes, subject), *between, Stage(TOKENIZE, last, sizes, subject)]


class _Steps:
    """Numbers the steps that keep records, over all stages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0

    def recorded(self, steps: list[PipelineStep]) -> list[PipelineStep]:
        for step in steps:
            if isinstance(step, RecordedStep):
                step.record_to(self._folder, self._next)
                self._next += 1
        return steps


def _most_dropped(records: list[dict[str, Any]]) -> str:
    counts = [
        (count, f"{count} dropped by '{record['step']}' ({reason})")
        for record in records
        for reason, count in record["dropped"].items()
    ]
    return max(counts, default=(0, "there was no document in it"))[1]
