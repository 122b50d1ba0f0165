"""Records of steps: written and read again, whatever was in the documents."""

from __future__ import annotations

from pathlib import Path

from datamodules.prepare.records import StepRecord, merged_records


def test_a_record_of_a_text_that_is_no_utf_8_is_kept_like_any_other(tmp_path: Path) -> None:
    record = StepRecord("length", kept=2)
    record.drop("too short", "web: caf\udce9.txt", "a \ud800 lone surrogate")
    for task in (0, 1):
        record.save(tmp_path, order=3, task=task)
    (merged,) = merged_records(tmp_path, range(2))
    assert (merged.kept, merged.dropped) == (4, {"too short": 2})
    assert merged.examples["too short"] == 2 * record.examples["too short"]
