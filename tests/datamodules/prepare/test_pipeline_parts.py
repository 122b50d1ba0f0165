"""Parts of the pipeline by themselves: intermediate files, work folder, description, progress."""

from __future__ import annotations

import copy
import fcntl
import io
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from pipeline_standins import stage
from rich.console import Console

from datamodules.prepare.deduplication import Deduplication
from datamodules.prepare.document import Item, pack, unpack
from datamodules.prepare.executors import PreparationError
from datamodules.prepare.executors.local import WORKERS_LOCK
from datamodules.prepare.filters.length import LengthFilter
from datamodules.prepare.intermediate import ReadKept, WriteKept
from datamodules.prepare.pipeline_folder import WorkFolder
from datamodules.prepare.pipeline_identity import description, first_difference, with_contents
from datamodules.prepare.progress import Progress, ProgressFile, read_progress
from datamodules.prepare.progress_bar import ProgressBar
from datamodules.prepare.readers import TextReader
from datamodules.prepare.readers.base import WorkUnit

LONE = b"caf\xe9".decode("utf-8", "surrogateescape")


def test_kept_documents_come_back_as_they_were(tmp_path: Path) -> None:
    documents = [
        pack([Item("text", text="天 \n\r\n\x85 sea"), Item("text", text="", supervised=False)], "a:1", "a"),
        pack([Item("image", media=b"\x89PNG", name=f"{LONE}.png"), Item("text", text="seven")], LONE, "b"),
        pack([Item("sensor", value=[1.5, None, {"x": [True]}]), Item("sensor", value=None)], "c:1", "c"),
        pack([Item("audio", media=b"")], "c:2", "c"),
    ]
    documents += [
        pack([Item("text", text=f"document {number}")], f"d:{number}", "d") for number in range(600)
    ]
    passed = list(WriteKept(tmp_path / "kept").run(documents, rank=3))
    assert passed == documents
    read = ReadKept(tmp_path / "kept", lambda task: [("a", WorkUnit("x", 0, -1, 700 + task))], tmp_path / "p")
    again = list(read.run(None, rank=3))
    assert [unpack(document) for document in again] == [unpack(document) for document in documents]
    assert again == documents
    assert read_progress(tmp_path / "p", 3) == Progress(703, 604)


def test_a_missing_or_damaged_intermediate_file_is_named(tmp_path: Path) -> None:
    read = ReadKept(tmp_path, lambda task: [], tmp_path)
    with pytest.raises(ValueError, match=r"00000.arrow.* is missing or damaged .*--overwrite"):
        list(read.run(None))
    (tmp_path / "00000.arrow").write_bytes(b"no arrow at all, but long enough")
    with pytest.raises(ValueError, match="missing or damaged"):
        list(read.run(None))


def test_what_a_config_chooses_is_described_as_the_config_has_it_also_after_a_copy() -> None:
    reader = TextReader("corpus", patterns=["*.txt"])
    expected = {
        "class_path": "datamodules.prepare.readers.text.TextReader",
        "init_args": {
            "path": "corpus",
            "patterns": ["*.txt"],
            "limits": description(reader.limits),
            "unit_bytes": 64 << 20,
        },
    }
    assert description(reader) == expected
    assert description(pickle.loads(pickle.dumps(reader))) == expected
    assert description(copy.deepcopy(reader)) == expected
    assert description(LengthFilter(7))["init_args"]["min_words"] == 7
    assert description(Deduplication(near=False))["init_args"]["near"] is False


def test_other_values_are_described_by_what_they_hold() -> None:
    values = {
        "set": {"b", "a"},
        "pattern": re.compile("x+"),
        "bytes": b"1",
        "array": np.arange(3),
        "kind": Item,
    }
    described = description(values)
    assert described["set"] == ["a", "b"]
    assert described["pattern"] == "x+"
    assert described["kind"] == "datamodules.prepare.document.Item"
    assert described["array"].startswith("int64[3] sha256:")
    assert json.loads(json.dumps(described)) == described


def test_a_file_that_a_config_names_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one")
    before = with_contents({"words": str(tmp_path / "words.txt"), "other": ["a\0b", "x" * 5000, ""]})
    (tmp_path / "words.txt").write_text("two")
    now = with_contents({"words": str(tmp_path / "words.txt"), "other": ["a\0b", "x" * 5000, ""]})
    assert before["other"] == now["other"] == ["a\0b", "x" * 5000, ""]
    difference = first_difference(before, now)
    assert difference is not None and difference.startswith("`words` was '")


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "`a.b[1]` was 2, now it is 3"),
        ({"a": 1, "b": 2}, {"a": 1}, "`b` is no longer there"),
        ({"a": 1}, {"a": 1, "b": 2}, "`b` is new"),
        ({"s": {"a": 1, "b": 2}}, {"s": {"b": 2, "a": 1}}, "the order of `s` was a, b, now it is b, a"),
        ({"f": [1]}, {"f": [1, 2]}, "`f` had 1 entries, now it has 2"),
        ({"f": {"class_path": "m.A", "x": 1}}, {"f": {"class_path": "m.B"}}, "`f` was m.A, now it is m.B"),
        ({"d": None}, {"d": {"class_path": "m.B"}}, "`d` was None, now it is m.B"),
    ],
)
def test_the_first_differing_key_is_named_with_both_values(
    before: object, now: object, difference: str | None
) -> None:
    assert first_difference(before, now) == difference


def test_a_run_that_ended_between_the_two_renames_of_publishing_loses_neither_data_set(
    tmp_path: Path,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with WorkFolder(tmp_path / "out") as work:
        work.result.mkdir()
        (work.result / "new").touch()
        work.config.touch()
        os.rename(tmp_path / "out", work.path / "replaced")  # and here it was killed
    with WorkFolder(tmp_path / "out") as work:
        assert work.begun and not work.published
        work.publish()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    with WorkFolder(tmp_path / "out") as work:
        work.config.touch()
        os.rename(tmp_path / "out", work.path / "replaced")
    with WorkFolder(tmp_path / "out") as work:
        work.clear()  # started anew
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_a_run_that_ended_after_publishing_is_known_as_such(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "out") as work:
        work.config.touch()
        assert work.published
        work.clear()
        assert not work.begun
    assert not work.path.exists()


def test_a_run_waits_for_the_last_worker_of_a_killed_one(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "out") as work:
        work.config.touch()
        worker = os.open(work.stages / WORKERS_LOCK, os.O_RDWR)
        fcntl.flock(worker, fcntl.LOCK_SH)
    with pytest.raises(PreparationError, match="worker processes of an earlier run still write into"):
        WorkFolder(tmp_path / "out", wait_seconds=0.1).__enter__()
    os.close(worker)
    with WorkFolder(tmp_path / "out") as work:
        assert work.begun


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    collect, pairs = stage("collect", tasks=3), stage("pairs", tasks=2)
    with ProgressBar(2, tmp_path, Console(file=shown)) as progress:
        progress.begin(collect, [1])
        ProgressFile(tmp_path / "collect", 0).report(Progress(1, 50))
        progress.refresh()
        progress.done(0)
        progress.done(2)
        progress.begin(pairs, [0, 1])
    first, second = shown.getvalue().splitlines()
    assert re.fullmatch(
        r"collect 1/2: 100%, 3/3 tasks, \d+.\d MB/s, [\d,]+ documents/s, in 0:00:00", first
    ), first
    assert second == "pairs 2/2: 100%, 2/2 tasks, complete already"


def test_progress_is_a_bar_with_rate_and_time_left_on_a_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=150)
    with ProgressBar(1, tmp_path, console) as progress:
        progress.begin(stage("collect", tasks=4), [])
        ProgressFile(tmp_path / "collect", 0).report(Progress(1, 50))
        progress.done(0)
        progress.refresh()
        progress._bar.refresh()  # type: ignore[union-attr]
    assert re.search(
        r"collect 1/1.* 25%, 1/4 tasks, .* MB/s, .* documents/s, \d:\d\d:\d\d left", shown.getvalue()
    )
