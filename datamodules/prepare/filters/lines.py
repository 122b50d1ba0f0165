"""`LineFilter`: drops documents whose lines are those of menus, code or page furniture.

Notable:
- The rules of C4 (Raffel et al. 2019, arXiv 1910.10683) and FineWeb (arXiv 2406.17557), asked of documents:
  nothing is cut out of a text. Where C4 removes a line, a share of such lines removes the document.
- Chinese sentences end with 。！？…」』” too; a line is short at a third of the characters.
"""

from __future__ import annotations

import re

import numpy as np
from datatrove.data import Document

from datamodules.prepare.filters.characters import code_points_of, kinds_of
from datamodules.prepare.filters.layout import Lines, find_lines
from datamodules.prepare.filters.words import find_words
from datamodules.prepare.step import Filter

TERMINAL = ".!?:;\"')]’”»…。！？：；」』）》】〗．"
"""What a line of prose, verse or dialogue may end with."""
FURNITURE = (
    "javascript",
    "cookie policy",
    "privacy policy",
    "terms of use",
    "use of cookies",
    "uses cookies",
    "隐私政策",
    "使用条款",
    "版权所有",
    "浏览器不支持",
)
"""Phrases, in small letters, by which C4 removes lines, and Chinese ones of the same kind."""
PLACEHOLDER = "lorem ipsum"


class LineFilter(Filter):
    """Drops documents by how their lines look.

    Args:
        min_terminal: least share of lines that end with terminal punctuation (FineWeb: 0.12; C4 keeps no
            other line).
        max_short_lines: largest share of short lines (FineWeb: 0.67).
        short_line: characters of a short line where words are spaced (FineWeb: 30).
        short_unspaced_line: the same in scripts without spaces.
        max_curly_braces: largest share of characters that are curly braces, which code has and prose has not
            (C4: not one; a document with code in it may be wanted).
        max_furniture_lines: largest share of lines with a phrase of `FURNITURE`.
        min_words: of shorter documents only the placeholder is judged.
    """

    name = "lines"

    def __init__(
        self,
        min_terminal: float = 0.12,
        max_short_lines: float = 0.67,
        short_line: int = 30,
        short_unspaced_line: int = 10,
        max_curly_braces: float = 0.002,
        max_furniture_lines: float = 0.1,
        min_words: int = 50,
    ) -> None:
        super().__init__()
        self.min_terminal = min_terminal
        self.max_short_lines = max_short_lines
        self.short_line, self.short_unspaced_line = short_line, short_unspaced_line
        self.max_curly_braces = max_curly_braces
        self.max_furniture_lines = max_furniture_lines
        self.min_words = min_words

    def judge(self, document: Document) -> str | None:
        """Name the first rule that is broken."""
        text = document.text
        lowered = text.lower()
        if PLACEHOLDER in lowered:
            return PLACEHOLDER
        code_points = code_points_of(text)
        kinds = kinds_of(code_points)
        words = find_words(code_points, kinds)
        if len(words) < self.min_words:
            return None
        if text.count("{") + text.count("}") > self.max_curly_braces * len(text):
            return "curly braces"
        lines = find_lines(code_points, kinds)
        if np.isin(code_points[lines.ends - 1], _TERMINAL).mean() < self.min_terminal:
            return "no sentence ends"
        short = self.short_unspaced_line if words.unspaced else self.short_line
        if (lines.lengths <= short).mean() > self.max_short_lines:
            return "short lines"
        if _furniture_lines(text, lowered, lines) > self.max_furniture_lines * len(lines):
            return "page furniture"
        return None


_TERMINAL = code_points_of(TERMINAL)
_FURNITURE = re.compile("|".join(map(re.escape, FURNITURE)), re.IGNORECASE)


def _furniture_lines(text: str, lowered: str, lines: Lines) -> int:
    """How many lines hold one of the phrases."""
    if not any(phrase in lowered for phrase in FURNITURE):  # far faster than the pattern
        return 0
    places = [match.start() for match in _FURNITURE.finditer(text)]  # lowering can change lengths
    return len(np.unique(np.searchsorted(lines.starts, places, side="right")))
