"""`SymbolFilter`: drops documents of signs instead of sentences, and those that were decoded wrongly.

Notable:
- The rules of Gopher (Rae et al. 2021, arXiv 2112.11446) on hashes, ellipses, bullets and letters; Chinese
  forms of the signs count too (……, ●, ◆).
- Broken characters are what no text holds: control characters, U+FFFD, code points without meaning, and the
  Chinese phrase that UTF-8 read as GBK turns U+FFFD into (锟斤拷).
"""

from __future__ import annotations

import numpy as np
from datatrove.data import Document

from datamodules.prepare.filters import characters
from datamodules.prepare.filters.characters import CodePoints, code_points_of, kinds_of
from datamodules.prepare.filters.layout import Lines, find_lines
from datamodules.prepare.filters.words import find_words
from datamodules.prepare.step import Filter

BULLETS = "•‣◦▪■□●○◆◇★☆►▶▷·*-–—"
MISREAD = "锟斤拷"
"""Two U+FFFD in UTF-8, read as GBK."""

_ELLIPSIS, _DOT, _CHINESE_STOP = ord("…"), ord("."), ord("。")


class SymbolFilter(Filter):
    """Drops documents with too many signs, digits or broken characters.

    Args:
        max_hashes: most `#` a word (Gopher: 0.1).
        max_ellipses: most ellipses a word (Gopher: 0.1).
        max_bullet_lines: largest share of lines that begin with a bullet (Gopher: 0.9).
        max_ellipsis_lines: largest share of lines that end with an ellipsis (Gopher: 0.3).
        min_letters: least share of letters in what is not space (Gopher asks for a letter in 80 % of the
            words; tables and manuals in Chinese come down to 0.5 of the characters).
        max_digits: largest share of digits among letters and digits.
        max_broken: largest share of broken characters.
        min_characters: of shorter texts only broken characters are judged: a caption may be one number.
    """

    name = "symbols"

    def __init__(
        self,
        max_hashes: float = 0.1,
        max_ellipses: float = 0.1,
        max_bullet_lines: float = 0.9,
        max_ellipsis_lines: float = 0.3,
        min_letters: float = 0.5,
        max_digits: float = 0.3,
        max_broken: float = 0.002,
        min_characters: int = 80,
    ) -> None:
        super().__init__()
        self.max_hashes, self.max_ellipses = max_hashes, max_ellipses
        self.max_bullet_lines, self.max_ellipsis_lines = max_bullet_lines, max_ellipsis_lines
        self.min_letters, self.max_digits, self.max_broken = min_letters, max_digits, max_broken
        self.min_characters = min_characters

    def judge(self, document: Document) -> str | None:
        """Name the first rule that is broken."""
        text = document.text
        code_points = code_points_of(text)
        kinds = kinds_of(code_points)
        counts = np.bincount(kinds, minlength=characters.NUM_KINDS)
        visible = len(text) - int(counts[characters.SPACE] + counts[characters.NEWLINE])
        broken = int(counts[: characters.SPACE].sum()) + len(MISREAD) * text.count(MISREAD)
        if broken > self.max_broken * len(text):
            return "broken characters"
        if visible < self.min_characters:
            return None
        digits, letters = int(counts[characters.DIGIT]), int(counts[characters.MARK :].sum())
        if digits > self.max_digits * (digits + letters):
            return "too many digits"
        if letters < self.min_letters * visible:
            return "too few letters"
        words = find_words(code_points, kinds)
        if text.count("#") > self.max_hashes * words.equivalent:
            return "too many hashes"
        ellipses = text.count("…") - text.count("……") + text.count("...") + text.count("。。。")
        if ellipses > self.max_ellipses * words.equivalent:
            return "too many ellipses"
        lines = find_lines(code_points, kinds)
        if np.isin(code_points[lines.starts], _BULLETS).sum() > self.max_bullet_lines * len(lines):
            return "mostly bullets"
        if _end_with_ellipsis(code_points, lines) > self.max_ellipsis_lines * len(lines):
            return "lines that break off"
        return None


_BULLETS = code_points_of(BULLETS)


def _end_with_ellipsis(code_points: CodePoints, lines: Lines) -> int:
    """How many lines do."""
    last = code_points[lines.ends - 1]
    dots = (last == _DOT) | (last == _CHINESE_STOP)
    for back in (2, 3):
        dots &= (lines.lengths >= back) & (code_points[lines.ends - back] == last)
    return int(((last == _ELLIPSIS) | dots).sum())
