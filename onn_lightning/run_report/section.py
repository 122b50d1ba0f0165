"""`Section`: a part of the page."""

from __future__ import annotations

from dataclasses import dataclass

from onn_lightning.run_report.markup import Safe, element


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own.

    Args:
        key: names it within the page.
        title: its heading.
        body: what it holds.
    """

    key: str
    title: str
    body: Safe

    def html(self) -> Safe:
        """As it stands in the page."""
        heading = element("h2", self.title, id=f"{self.key}-heading")
        return element("section", heading, self.body, id=self.key, aria_labelledby=f"{self.key}-heading")
