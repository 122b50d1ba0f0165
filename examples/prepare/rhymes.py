"""A filter of one's own: keeps texts of which many lines rhyme, or seem to.

Notable: `judge` sees one document and depends on nothing else, so that the result is the same whatever the
number of tasks and workers.
"""

from __future__ import annotations

from datatrove.data import Document

from datamodules.prepare.step import Filter


class RhymeFilter(Filter):
    """Drops texts whose neighbouring lines seldom end alike.

    Args:
        min_share: least share of lines that end as one of the two lines before them does.
        letters: how many letters at the end are compared.
    """

    name = "rhymes"  # in the summary and in the manifest

    def __init__(self, min_share: float = 0.2, letters: int = 2) -> None:
        super().__init__()
        if not 0 <= min_share <= 1:
            raise ValueError(f"RhymeFilter: min_share is {min_share}, it must lie in 0..1")
        self.min_share, self.letters = min_share, letters

    def judge(self, document: Document) -> str | None:
        """A few words that the dropped documents are counted by, or None to keep this one."""
        lines = [line.rstrip(" ,.;:!?-'\"").lower() for line in document.text.split("\n") if line.strip()]
        ends = [line[-self.letters :] for line in lines]
        rhyming = sum(end in ends[max(0, place - 2) : place] for place, end in enumerate(ends))
        if rhyming < self.min_share * len(ends):
            return "prose"
        return None
