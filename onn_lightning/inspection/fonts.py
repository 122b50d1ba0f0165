"""A font for captions: one with Chinese characters where the machine has any, else plain ASCII.

Notable:
- No font is bundled and no program is asked: the usual folders are searched by the usual names, and a
  candidate is taken only if it draws different characters differently (an empty box would be the same).
- What no font can draw is written as `?`, never as a row of boxes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

FOLDERS = (
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)
NAMES = (
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "wqy",
    "droidsansfallback",
    "pingfang",
    "hiragino",
    "msyh",
    "simhei",
    "arialunicode",
    "uming",
    "ukai",
)
"""Beginnings of file names, without spaces and dashes, the best first."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Lettering:
    """A font and what it can write.

    Args:
        font: for Pillow.
        has_chinese: whether it draws Chinese characters.
    """

    font: Font
    has_chinese: bool

    def safe(self, text: str) -> str:
        """The text with `?` for what the font does not have."""
        if self.has_chinese:
            return text
        return "".join(character if " " <= character <= "~" else "?" for character in text)

    def width(self, text: str) -> int:
        """Pixels that a (safe) text takes."""
        return round(self.font.getlength(text))

    def cut(self, text: str, width: int) -> str:
        """The beginning of a text that takes at most `width` pixels, with dots where it is cut."""
        text = self.safe(text)
        if self.width(text) <= width:
            return text
        while text and self.width(text + "...") > width:
            text = text[:-1]
        return text + "..."


def find_lettering(size: int, folders: tuple[str, ...] = FOLDERS) -> Lettering:
    """The best font of this machine.

    Args:
        size: height of the letters in pixels.
        folders: where to look for fonts.
    """
    for path in _candidates(folders):
        try:
            font = ImageFont.truetype(path, size)
        except OSError:
            continue
        pictures = {bytes(font.getmask(character)) for character in "人工智能"}
        if len(pictures) == 4:
            return Lettering(font, has_chinese=True)
    return Lettering(ImageFont.load_default(size), has_chinese=False)


def _candidates(folders: tuple[str, ...]) -> Iterator[Path]:
    found: list[tuple[int, Path]] = []
    for folder in folders:
        for parent, _, files in os.walk(os.path.expanduser(folder)):
            for file in files:
                plain = file.lower().replace("-", "").replace("_", "").replace(" ", "")
                rank = next((rank for rank, name in enumerate(NAMES) if plain.startswith(name)), None)
                if rank is not None and plain.endswith((".ttf", ".ttc", ".otf")):
                    found.append((rank, Path(parent) / file))
    return (path for _, path in sorted(found))
