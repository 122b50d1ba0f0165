"""What kind of character stands where: one table look-up, on which all text filters and shingles build.

Notable:
- A text becomes its code points, and those their kinds: [n] arrays. What filters ask is counted on them in
  numpy or numba, at hundreds of MB/s.
- Kinds are ordered so that "joins a word" and "is a word of its own" are ranges. A Han or kana
  character is a word of its own, and so are those of scripts written without spaces.
- Python has no table of scripts; the ranges here are those of Unicode's blocks.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

# In the order of meaning: nothing, separators, parts of words, words of their own.
UNASSIGNED, REPLACEMENT, CONTROL, SPACE, NEWLINE, PUNCTUATION, SYMBOL = range(7)
DIGIT, MARK, LATIN, GREEK, CYRILLIC, HEBREW, ARABIC, INDIC, HANGUL, OTHER_LETTER = range(7, 17)
HAN, KANA, UNSPACED = range(17, 20)
NUM_KINDS = 20

FIRST_OF_WORDS = DIGIT
"""Kinds from here on are parts of words."""
FIRST_LONE = HAN
"""Kinds from here on are words of their own."""

CodePoints = npt.NDArray[np.uint32]
Kinds = npt.NDArray[np.uint8]

_LISTED = 0x20000  # beyond the first two planes there are Han characters, tags and private use
_HAN_PLANES = (0x20000, 0x40000)
_LETTER_BLOCKS = {
    LATIN: ((0x41, 0x24F), (0x250, 0x2FF), (0x1D00, 0x1DBF), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F),
            (0x2071, 0x209C), (0xA720, 0xA7FF), (0xAB30, 0xAB6F), (0xFB00, 0xFB06), (0xFF21, 0xFF5A),
            (0x10780, 0x107BF), (0x1DF00, 0x1DFFF)),
    GREEK: ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    CYRILLIC: ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    HEBREW: ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    ARABIC: ((0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE),
             (0x10EC0, 0x10EFF), (0x1EE00, 0x1EEFF)),
    INDIC: ((0x900, 0xDFF),),
    HANGUL: ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    UNSPACED: ((0xE00, 0xFFF), (0x1000, 0x109F), (0x1780, 0x17FF)),
    KANA: ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D), (0x1AFF0, 0x1B16F)),
    HAN: ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
          (0xF900, 0xFAFF), (0x16FF0, 0x18CFF)),
}  # fmt: skip
_SELECTORS = (0xE0000, 0xE01F0)
_WIDE_ASCII = (0xFF01, 0xFF5E)
_WIDE_OFFSET = 0xFEE0


def code_points_of(text: str) -> CodePoints:
    """[n] code points; lone surrogates, which JSON can spell, are let through."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


def kinds_of(code_points: CodePoints) -> Kinds:
    """[n] kinds."""
    return kind_table()[code_points]


@cache
def kind_table() -> Kinds:
    """[0x110000] kind of every code point."""
    table = np.full(0x110000, UNASSIGNED, dtype=np.uint8)
    table[slice(*_HAN_PLANES)] = HAN
    for code in range(_LISTED):
        table[code] = _KIND_OF_CATEGORY[unicodedata.category(chr(code))]
    letters = table[:_LISTED] == OTHER_LETTER
    ideographs = (HAN, KANA)  # radicals and ideographic numbers are no letters to Unicode
    for kind, blocks in _LETTER_BLOCKS.items():
        for first, last in blocks:
            block = slice(first, last + 1)
            wanted = letters[block] if kind not in ideographs else table[block] >= SYMBOL
            table[block][wanted] = kind
    table[0x3006] = PUNCTUATION  # the closing mark stands between the iteration mark and the zero
    table[ord("\n")] = NEWLINE
    table[[ord(character) for character in "\t\v\f\r"]] = SPACE
    table[0xFFFD] = REPLACEMENT
    table[slice(*_SELECTORS)] = SPACE  # they choose the form of a Han character
    return table


@cache
def fold_table() -> CodePoints:
    """[0x20000] code points as word hashes read them: small letters, wide forms as ASCII."""
    table = np.arange(_LISTED, dtype=np.uint32)
    table[_WIDE_ASCII[0] : _WIDE_ASCII[1] + 1] -= np.uint32(_WIDE_OFFSET)
    for code in range(_LISTED):
        lowered = chr(int(table[code])).lower()
        if len(lowered) == 1:
            table[code] = ord(lowered)
    return table


_KIND_OF_CATEGORY = {
    **dict.fromkeys(("Lu", "Ll", "Lt", "Lm", "Lo"), OTHER_LETTER),
    **dict.fromkeys(("Mn", "Mc", "Me"), MARK),
    **dict.fromkeys(("Nd", "Nl", "No"), DIGIT),
    **dict.fromkeys(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"), PUNCTUATION),
    **dict.fromkeys(("Sm", "Sc", "Sk", "So"), SYMBOL),
    **dict.fromkeys(("Zs", "Zl", "Zp", "Cf"), SPACE),  # Cf: marks of direction, joiners, byte order mark
    "Cc": CONTROL,
    **dict.fromkeys(("Cs", "Co", "Cn"), UNASSIGNED),
}
