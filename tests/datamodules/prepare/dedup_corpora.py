"""Generated corpora for tests of the deduplication, and the way of one through all its stages."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from datatrove.data import Document

from datamodules.prepare.deduplication import Deduplication
from datamodules.prepare.document import Item, pack
from datamodules.prepare.records import StepRecord

HAN = [chr(code) for code in range(0x4E00, 0x5200)]
ENGLISH = ["".join(syllables) for syllables in product(("ba", "co", "du", "fe", "gi"), repeat=4)]


@dataclass(frozen=True)
class Outcome:
    """Of a deduplication.

    Args:
        kept: ids, in order.
        reasons: how many were dropped for what.
        records: one a task.
    """

    kept: list[str]
    reasons: Counter[str]
    records: list[StepRecord]


def numbered(texts: Sequence[str]) -> list[Document]:
    """Documents whose ids are their numbers."""
    return [pack([Item("text", text=text)], str(number), "corpus") for number, text in enumerate(texts)]


def cut(documents: Sequence[Document], tasks: int) -> list[Sequence[Document]]:
    """Into parts of about the same size, in order."""
    ends = [len(documents) * task // tasks for task in range(tasks + 1)]
    return [documents[start:end] for start, end in pairwise(ends)]


def sign(settings: Deduplication, folder: Path, part: Sequence[Document], task: int = 0) -> None:
    """Write the signatures of one task; its documents must come through untouched."""
    passing: Any = iter(part)
    for step in settings.signature_steps(folder):
        passing = step.run(passing, task, task + 1)
    assert list(passing) == list(part)


def find(settings: Deduplication, folder: Path, tasks: int) -> None:
    """Run the stages, one task after the other."""
    for stage in settings.stages(folder, tasks):
        for task in range(stage.tasks):
            for step in stage.steps:
                step.run(None, task, stage.tasks)


def drop(settings: Deduplication, folder: Path, parts: Sequence[Sequence[Document]]) -> Outcome:
    """Read the parts again, without the copies."""
    kept: list[str] = []
    records = []
    for task, part in enumerate(parts):
        records.append(StepRecord("deduplication"))
        step: Any = settings.drop_step(folder)
        kept += [document.id for document in step.process(part, records[-1], task)]
    assert sum(record.kept for record in records) == len(kept)
    return Outcome(kept, sum((record.dropped for record in records), Counter[str]()), records)


def deduplicated(
    texts_or_documents: Sequence[str] | Sequence[Document], folder: Path, tasks: int = 1, **settings: Any
) -> Outcome:
    """All of it."""
    first = texts_or_documents[0] if texts_or_documents else ""
    documents: Any = numbered(texts_or_documents) if isinstance(first, str) else texts_or_documents  # type: ignore[arg-type]
    parts = cut(documents, tasks)
    deduplication = Deduplication(**settings)
    for task, part in enumerate(parts):
        sign(deduplication, folder, part, task)
    find(deduplication, folder, tasks)
    return drop(deduplication, folder, parts)


def chinese(draw: random.Random, length: int) -> str:
    """Characters at random, with punctuation."""
    return "".join(draw.choice(HAN) + draw.choice(("", "", "", "，", "。\n")) for _ in range(length))


def english(draw: random.Random, length: int) -> str:
    """Words at random, with punctuation."""
    return " ".join(draw.choice(ENGLISH) + draw.choice(("", "", "", ",", ".\n")) for _ in range(length))


def edited(draw: random.Random, text: str, edits: int) -> str:
    """The text with some of its words (Chinese: characters) replaced."""
    pieces = re.findall(r"[\u4e00-\u9fff]|[a-z]+|[^a-z\u4e00-\u9fff]+", text)
    places = [place for place, piece in enumerate(pieces) if piece[0].isalpha()]
    for place in draw.sample(places, edits):
        pieces[place] = draw.choice(ENGLISH if pieces[place].isascii() else HAN)
    return "".join(pieces)


def jaccard(one: str, other: str, n: int = 5) -> float:
    """Share of common n-grams, in plain Python."""
    sets = []
    for text in (one, other):
        words = re.findall(r"[\u4e00-\u9fff]|[a-z]+", text.lower())
        sets.append({tuple(words[i : i + n]) for i in range(len(words) - n + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])
