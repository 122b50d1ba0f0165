"""`StepRecord`: what one step of one task saw, kept and dropped, with examples of what it dropped.

Notable:
- Plain counts and strings, no times: the records of all tasks, merged in the order of the tasks, are
  part of the manifest, whose bytes must not depend on the machine or on interruptions.
- A record is written when its step has seen the task's last document, beside and renamed; a task that
  is killed and run again overwrites it with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXAMPLES_PER_REASON = 3
_EXAMPLE_CHARACTERS = 200


@dataclass
class StepRecord:
    """Counts of one step.

    Args:
        step: name of the step, as the manifest shows it.
        kept: documents passed on.
        dropped: documents dropped, by reason.
        examples: by reason, the first few dropped: {"id": ..., "text": first characters}.
    """

    step: str
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def drop(self, reason: str, document_id: str, text: str = "") -> None:
        """Count a dropped document or a bad sample; the first of each reason are kept as examples."""
        self.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append({"id": document_id, "text": text[:_EXAMPLE_CHARACTERS]})

    def save(self, folder: Path, order: int, task: int) -> None:
        """Write to `folder/<task>/<order>.json`.

        Args:
            folder: of all records of a preparation.
            order: place of the step in the pipeline.
            task: number of the task.
        """
        path = folder / f"{task:05d}" / f"{order:03d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".partial")
        content = json.dumps(self.to_json(), ensure_ascii=False)
        # a lone surrogate (in a text that was dropped, or a file's name) becomes its JSON escape
        beside.write_bytes(content.encode("utf-8", "backslashreplace"))
        os.replace(beside, path)

    def to_json(self) -> dict[str, Any]:
        """As plain data, reasons in alphabetical order."""
        return {
            "step": self.step,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "examples": dict(sorted(self.examples.items())),
        }

    def merge(self, other: StepRecord) -> None:
        """Add what another task counted in the same step."""
        self.kept += other.kept
        self.dropped.update(other.dropped)
        for reason, examples in other.examples.items():
            own = self.examples.setdefault(reason, [])
            own.extend(examples[: EXAMPLES_PER_REASON - len(own)])

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StepRecord:
        """The inverse of `to_json`."""
        return cls(data["step"], data["kept"], Counter(data["dropped"]), data["examples"])


def merged_records(folder: Path, tasks: Iterable[int]) -> list[StepRecord]:
    """The records of all tasks, one a step, in the order of the steps.

    Args:
        folder: as given to `StepRecord.save`.
        tasks: numbers of the tasks; merged in this order.
    """
    merged: dict[str, StepRecord] = {}
    for task in tasks:
        for path in sorted((folder / f"{task:05d}").glob("*.json")):
            record = StepRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
            if path.stem in merged:
                merged[path.stem].merge(record)
            else:
                merged[path.stem] = record
    return [merged[order] for order in sorted(merged)]
