"""The plan of a preparation: which units of the corpus each task reads.

Notable:
- Consecutive units of one source form a task until `task_bytes` or `MAX_UNITS` is reached. Workers play
  no part in it: tasks, and so the shards of the result, belong to the corpus and the config alone.
- `plan.jsonl` has one line a task and is streamed, never held: a corpus of a million files is planned in
  constant memory. `plan.index` holds offset and size of every line, so that a task reads only its own.
- A resumed preparation plans again and compares: going on with a corpus that has changed would mix two
  corpora in one result.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from datamodules.prepare.readers.base import Reader, WorkUnit

MAX_UNITS = 10_000
"""Units of a task at most: many tiny files are many seeks, and a line of the plan is read at once."""

PLAN = "plan.jsonl"
_INDEX = "plan.index"
_ENTRY = struct.Struct("<qqq")  # offset and length of the task's line, bytes of its units

SourceUnit = tuple[str, WorkUnit]
"""Name of the source, and one of its units."""


@dataclass(frozen=True)
class Plan:
    """Summary of a plan file.

    Args:
        path: of the plan file.
        tasks: how many tasks there are.
        units: how many units they have together.
        size: bytes of all units.
        digest: of names, bounds and sizes of all units; not of their times, so that a copy of a corpus
            has the digest of the original.
    """

    path: Path
    tasks: int
    units: int
    size: int
    digest: str


def write_plan(sources: Mapping[str, Reader], folder: Path, task_bytes: int) -> Plan:
    """Divide a corpus into tasks; written beside and renamed.

    Args:
        sources: readers by name, in the order in which their documents shall stand in the result.
        folder: an existing one.
        task_bytes: bytes of a task on disk; a single unit may have more.
    Raises:
        FileNotFoundError, PermissionError, ValueError: by a reader whose corpus cannot be read.
    """
    digest = hashlib.sha256()
    tasks = units = size = offset = 0
    beside = [folder / f"{name}.partial" for name in (_INDEX, PLAN)]
    with ExitStack() as stack:
        index, plan = (stack.enter_context(path.open("wb")) for path in beside)
        for task in _grouped(sources, task_bytes):
            line = _to_line(task)
            task_size = sum(unit.size for _, unit in task)
            plan.write(line)
            index.write(_ENTRY.pack(offset, len(line), task_size))
            for name, unit in task:
                digest.update(json.dumps([name, unit.path, unit.start, unit.stop, unit.size]).encode())
            tasks, units, size, offset = tasks + 1, units + len(task), size + task_size, offset + len(line)
    for path in beside:  # the plan last: where it is, its index is
        os.replace(path, path.with_suffix(""))
    return Plan(folder / PLAN, tasks, units, size, digest.hexdigest())


def units_of_task(plan_path: Path, task: int) -> list[SourceUnit]:
    """What a task reads.

    Args:
        plan_path: of the plan file.
        task: its number.
    """
    with plan_path.with_name(_INDEX).open("rb") as index:
        index.seek(task * _ENTRY.size)
        offset, length, _ = _ENTRY.unpack(index.read(_ENTRY.size))
    with plan_path.open("rb") as plan:
        plan.seek(offset)
        return _from_line(plan.read(length))


def sizes_of_tasks(plan_path: Path) -> list[int]:
    """Bytes that each task reads."""
    return [size for _, _, size in _ENTRY.iter_unpack(plan_path.with_name(_INDEX).read_bytes())]


def refuse_changes(before: Path, now: Path) -> None:
    """Make sure that two plan files are equal.

    Args:
        before: of the preparation that is to be resumed.
        now: made from the corpus as it is now.
    Raises:
        ValueError: naming the first file or part that has changed, appeared or vanished.
    """
    difference = _first_difference(before, now)
    if difference is not None:
        raise ValueError(
            f"the corpus is not the one that this preparation began with: {difference}; restore it, or start "
            "anew with --overwrite"
        )


def _first_difference(before: Path, now: Path) -> str | None:
    old_units, new_units = _all_units(before), _all_units(now)
    while True:
        old, new = next(old_units, None), next(new_units, None)
        if old == new:
            if old is None:
                return None
            continue
        if old is not None and new is not None and _key(old) == _key(new):
            return f"{_described(new)} has changed ({_changes(old[1], new[1])})"
        if new is not None and (old is None or _has(new_units, _key(old))):
            return f"{_described(new)} has appeared"
        assert old is not None
        return f"{_described(old)} has vanished"


def _key(unit: SourceUnit) -> tuple[str, str, int]:
    return unit[0], unit[1].path, unit[1].start


def _has(units: Iterable[SourceUnit], key: tuple[str, str, int]) -> bool:
    return any(_key(unit) == key for unit in units)


def _described(unit: SourceUnit) -> str:
    name, part = unit
    whole = part.start == 0 and part.stop == -1
    return f"'{part.path}'{'' if whole else f' from {part.start} on'} of source '{name}'"


def _changes(old: WorkUnit, new: WorkUnit) -> str:
    changes = []
    if old.size != new.size:
        changes.append(f"{old.size} bytes, now {new.size}")
    if old.modified != new.modified:
        changes.append(f"modified {_time(old.modified)}, now {_time(new.modified)}")
    if old.stop != new.stop:
        changes.append(f"ended at {old.stop}, now at {new.stop}")
    return "; ".join(changes)


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9).isoformat(" ", "milliseconds")


def _grouped(sources: Mapping[str, Reader], task_bytes: int) -> Iterator[list[SourceUnit]]:
    for name, reader in sources.items():
        task: list[SourceUnit] = []
        size = 0
        for unit in reader.plan():
            if task and (size + unit.size > task_bytes or len(task) == MAX_UNITS):
                yield task
                task, size = [], 0
            task.append((name, unit))
            size += unit.size
        if task:
            yield task


def _all_units(plan_path: Path) -> Iterator[SourceUnit]:
    with plan_path.open("rb") as plan:
        for line in plan:  # binary files iterate by LF only
            yield from _from_line(line)


def _to_line(task: list[SourceUnit]) -> bytes:
    rows = [[name, unit.path, unit.start, unit.stop, unit.size, unit.modified] for name, unit in task]
    return json.dumps(rows).encode() + b"\n"


def _from_line(line: bytes) -> list[SourceUnit]:
    return [(name, WorkUnit(*unit)) for name, *unit in json.loads(line)]
