"""The plan: tasks by bytes, read one by one, and what a changed corpus is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.prepare import plan as planning
from datamodules.prepare.plan import refuse_changes, sizes_of_tasks, units_of_task, write_plan
from datamodules.prepare.readers.base import BadSample, Reader, WorkUnit


class Units(Reader):
    """A corpus that is only planned."""

    def __init__(self, *units: WorkUnit) -> None:
        self.units = units

    def plan(self) -> Iterator[WorkUnit]:
        return iter(self.units)

    def read(self, unit: WorkUnit, source: str) -> Iterator[BadSample]:
        raise NotImplementedError


def units(*sizes: int) -> Units:
    return Units(*(WorkUnit(f"{number}.txt", 0, -1, size, 5) for number, size in enumerate(sizes)))


def test_consecutive_units_of_a_source_make_a_task_and_every_task_reads_its_own(tmp_path: Path) -> None:
    plan = write_plan({"a": units(40, 40, 40, 300, 10), "b": units(10)}, tmp_path, task_bytes=100)
    tasks = [units_of_task(plan.path, task) for task in range(plan.tasks)]
    names = [[(name, unit.path) for name, unit in task] for task in tasks]
    assert names == [
        [("a", "0.txt"), ("a", "1.txt")],
        [("a", "2.txt")],
        [("a", "3.txt")],
        [("a", "4.txt")],
        [("b", "0.txt")],
    ]
    assert sizes_of_tasks(plan.path) == [80, 40, 300, 10, 10]
    assert (plan.units, plan.size) == (6, 440)
    assert tasks[0][1] == ("a", WorkUnit("1.txt", 0, -1, 40, 5))


def test_many_tiny_units_do_not_all_go_into_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MAX_UNITS", 3)
    plan = write_plan({"a": units(*[1] * 8)}, tmp_path, task_bytes=100)
    assert sizes_of_tasks(plan.path) == [3, 3, 2]


def test_a_copy_of_a_corpus_has_the_digest_of_the_original(tmp_path: Path) -> None:
    digests = []
    for number, corpus in enumerate([units(1, 2), units(1, 2), units(1, 3)]):
        (tmp_path / str(number)).mkdir()
        copied = Units(*(replace(unit, modified=number) for unit in corpus.units))
        digests.append(write_plan({"a": copied}, tmp_path / str(number), 100).digest)
    assert digests[0] == digests[1] != digests[2]


def test_names_that_are_no_unicode_are_planned(tmp_path: Path) -> None:
    name = b"\xff.txt".decode("utf-8", "surrogateescape")
    plan = write_plan({"a": Units(WorkUnit(name, 0, -1, 1))}, tmp_path, 100)
    assert units_of_task(plan.path, 0)[0][1].path == name


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (units(1, 2, 3, 4), "'3.txt' of source 'a' has appeared"),
        (units(1, 2), "'2.txt' of source 'a' has vanished"),
        (Units(*units(1, 2, 3).units[1:]), "'0.txt' of source 'a' has vanished"),
        (Units(WorkUnit("#.txt", 0, -1, 1), *units(1, 2, 3).units), "'#.txt' of source 'a' has appeared"),
        (units(1, 9, 3), r"'1.txt' of source 'a' has changed \(2 bytes, now 9\)"),
        (
            Units(*(replace(unit, modified=7_000_000_000) for unit in units(1, 2, 3).units)),
            r"'0.txt' of source 'a' has changed \(modified 1970-01-01 .*, now 1970-01-01 .*:07.000\)",
        ),
        (Units(replace(units(1).units[0], start=1, stop=9)), "has appeared|has vanished"),
    ],
)
def test_the_first_difference_is_named(tmp_path: Path, now: Units, message: str) -> None:
    for name in ("before", "now"):
        (tmp_path / name).mkdir()
    before = write_plan({"a": units(1, 2, 3)}, tmp_path / "before", 100).path
    refuse_changes(before, before)
    with pytest.raises(ValueError, match=message):
        refuse_changes(before, write_plan({"a": now}, tmp_path / "now", 100).path)
