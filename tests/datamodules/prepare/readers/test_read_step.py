"""`ReadStep`: from a plan to documents, records and progress."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from datatrove.utils.logging import logger

from datamodules.bad_samples import TooManyBadSamplesError
from datamodules.prepare.plan import units_of_task, write_plan
from datamodules.prepare.progress import Progress, ProgressFile, read_progress, total_progress
from datamodules.prepare.read import ReadStep
from datamodules.prepare.readers import CorpusChangedError, JsonLinesReader, Reader, TextReader
from datamodules.prepare.records import merged_records


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What is logged at warning or above."""
    lines: list[str] = []
    handler = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(handler)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Reader]:
    """Thirty lines, every third of them bad, and a folder of two texts."""
    lines = ['{"text": "a"}\n', '{"text": "b"}\n', "{\n"] * 10
    (tmp_path / "web.jsonl").write_text("".join(lines))
    (tmp_path / "books").mkdir()
    for name in ("1.txt", "2.txt"):
        (tmp_path / "books" / name).write_text(name)
    return {
        "web": JsonLinesReader(tmp_path / "web.jsonl", unit_bytes=50),
        "books": TextReader(tmp_path / "books"),
    }


def step_over(sources: dict[str, Reader], folder: Path, task_bytes: int) -> tuple[ReadStep, int]:
    plan = write_plan(sources, folder, task_bytes)
    step = ReadStep(sources, partial(units_of_task, plan.path), folder / "progress")
    step.record_to(folder / "records", 0)
    return step, plan.tasks


@pytest.mark.parametrize("task_bytes", [1, 100, 1 << 20])
def test_any_number_of_tasks_reads_the_same_documents_and_counts_the_same(
    tmp_path: Path, sources: dict[str, Reader], task_bytes: int
) -> None:
    step, tasks = step_over(sources, tmp_path, task_bytes)
    step = pickle.loads(pickle.dumps(step))  # as an executor does
    documents = [each for task in range(tasks) for each in step.run(None, task, tasks)]
    assert [each.text for each in documents] == ["a", "b"] * 10 + ["1.txt", "2.txt"]
    assert [each.metadata["source"] for each in documents] == ["web"] * 20 + ["books"] * 2
    (record,) = merged_records(tmp_path / "records", range(tasks))
    assert (record.step, record.kept, record.dropped) == ("read", 22, {"broken JSON": 10})
    assert record.examples["broken JSON"][0]["id"] == "web: web.jsonl@28"
    assert "is not valid JSON" in record.examples["broken JSON"][0]["text"]
    assert len(record.examples["broken JSON"]) == 3


def test_the_first_bad_samples_are_named_and_later_ones_thin_out(tmp_path: Path, messages: list[str]) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n{\n' * 250)
    step, _ = step_over({"web": JsonLinesReader(path)}, tmp_path, 1 << 20)
    assert sum(1 for _ in step.run(None, 0, 1)) == 250
    numbers = [int(line.split("bad sample ")[1].split(":")[0]) for line in messages]
    assert numbers == [*range(1, 11), *range(20, 100, 10), 100, 200]
    assert "task 0: skipped bad sample 1: web: d.jsonl@14: broken JSON: is not valid JSON" in messages[0]


def test_a_run_of_bad_samples_stops_the_job_and_names_the_last(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n' + '{"content": "a"}\n' * 4 + '{"text": "b"}\n')
    step, _ = step_over({"web": JsonLinesReader(path)}, tmp_path, 1 << 20)
    step.max_consecutive_bad = 4
    assert sum(1 for _ in step.run(None, 0, 1)) == 2
    step.max_consecutive_bad = 3
    expected = (
        r"4 bad samples in a row in task 0, .* source 'web': web: d\.jsonl@65: missing column: .*'text'"
    )
    with pytest.raises(TooManyBadSamplesError, match=expected):
        list(step.run(None, 0, 1))
    with pytest.raises(ValueError, match="max_consecutive_bad is -1"):
        ReadStep({}, lambda task: [], max_consecutive_bad=-1)


def test_a_run_of_bad_samples_may_span_units(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("{\n" * 6)
    step, tasks = step_over({"web": JsonLinesReader(path, unit_bytes=2)}, tmp_path, 1 << 20)
    step.max_consecutive_bad = 5
    assert tasks == 1
    with pytest.raises(TooManyBadSamplesError):
        list(step.run(None, 0, 1))


def test_a_changed_corpus_stops_the_task(tmp_path: Path, sources: dict[str, Reader]) -> None:
    step, _ = step_over(sources, tmp_path, 1 << 20)
    (tmp_path / "web.jsonl").write_text("{}\n")
    with pytest.raises(CorpusChangedError, match=r"web\.jsonl' has changed"):
        list(step.run(None, 0, 1))


def test_progress_sums_over_tasks_to_the_whole_corpus(tmp_path: Path, sources: dict[str, Reader]) -> None:
    step, tasks = step_over(sources, tmp_path, 150)
    folder = tmp_path / "progress"
    assert total_progress(folder) == Progress(0, 0) and read_progress(folder, 0) is None
    size = sum(unit.size for reader in sources.values() for unit in reader.plan())
    for task in range(tasks):
        list(step.run(None, task, tasks))
    assert total_progress(folder) == Progress(size, 22)
    first = sum(unit.size for _, unit in step.units_of_task(0))
    assert read_progress(folder, 0) == Progress(first, 10)


def test_progress_within_a_unit_is_reported_at_most_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n' * 1000)
    step, _ = step_over({"web": JsonLinesReader(path)}, tmp_path, 1 << 20)
    documents = step.run(None, 0, 1)
    next(documents)
    before = read_progress(tmp_path / "progress", 0)
    for _ in range(500):
        next(documents)
    assert read_progress(tmp_path / "progress", 0) == before == Progress(path.stat().st_size, 0)
    documents.close()


def test_progress_files_that_are_half_written_or_foreign_count_as_nothing(tmp_path: Path) -> None:
    ProgressFile(tmp_path, 3).report(Progress(7, 2))
    (tmp_path / "00004").write_text("")
    (tmp_path / "00005.partial").write_text("9 9")
    (tmp_path / "notes").write_text("9 9")
    assert total_progress(tmp_path) == Progress(7, 2)
    assert read_progress(tmp_path, 4) is None
