"""Builds the built-in inventory of characters: `python -m datamodules.text.inventory OUT`.

Notable:
- Deterministic: ranges are filtered with Python's frozen Unicode 3.2 database, everything later
  comes from the named files, and ids follow code points. Only the result is shipped.
- Needs the Unicode files of Debian's package `unicode-data` (`--unicode-data`), and jieba.
- Exactly `NUM_CHARACTERS` characters. What must be in comes first: GB 2312, the Table of General
  Standard Characters, jieba's dictionary, scripts, symbols and emoji. Han characters of the East
  Asian core sets and of classical Chinese fill the rest.

Sources: GB 2312 and Big5 (Python's codecs); Unihan fields kTGH (Table of General Standard
Characters, 8,105), kJoyoKanji, kIICore, kTang, kGSR (Grammata Serica Recensa), kXHC1983;
emoji-test.txt; jieba's dict.txt.
"""

from __future__ import annotations

import argparse
import bz2
from collections.abc import Iterator
from pathlib import Path
from unicodedata import ucd_3_2_0

from datamodules.text.vocabulary import CharacterVocabulary
from datamodules.text.words import jieba_dictionary

NUM_CHARACTERS = 20_480

BLOCKS = (
    (0x0009, 0x000A, "tab, newline"),
    (0x000D, 0x000D, "carriage return"),
    (0x0020, 0x007E, "ASCII"),
    (0x00A0, 0x02AF, "Latin with diacritics, IPA"),
    (0x02B0, 0x036F, "modifier letters, combining marks"),
    (0x0370, 0x052F, "Greek, Cyrillic"),
    (0x1E00, 0x1FFF, "Latin and Greek with more diacritics"),
    (0x2000, 0x206F, "general punctuation"),
    (0x2070, 0x218F, "superscripts, currency, letterlike, number forms"),
    (0x2190, 0x23FF, "arrows, mathematical operators, technical"),
    (0x2460, 0x27BF, "enclosed, box drawing, geometric, symbols, dingbats"),
    (0x3000, 0x303F, "CJK punctuation"),
    (0x3040, 0x30FF, "hiragana, katakana"),
    (0x3100, 0x312F, "bopomofo"),
    (0x3200, 0x33FF, "enclosed CJK, CJK compatibility"),
    (0xFE10, 0xFE4F, "vertical and small CJK forms"),
    (0xFF00, 0xFFEF, "fullwidth and halfwidth forms"),
)
LATER = "₹₺₽₿ẞ€№℃\ufe0f\u200d\ufffd"
"""Common characters younger than Unicode 3.2, and those that emoji and broken text need."""

HAN_FILL = (
    ("OtherMappings", "kJoyoKanji"),
    ("IRGSources", "kIICore"),
    ("Readings", "kTang"),
    ("DictionaryIndices", "kGSR"),
    ("Readings", "kXHC1983"),
    ("OtherMappings", "kBigFive"),
)
"""Unihan (file, field) pairs whose characters fill the inventory, in this order."""


def build_inventory(unicode_data: Path) -> CharacterVocabulary:
    """Collect the characters.

    Args:
        unicode_data: folder with `Unihan_*.txt.bz2` and `emoji/emoji-test.txt`.
    Raises:
        FileNotFoundError: if one of the files is not there.
        ValueError: if what must be in the inventory does not fit.
    """
    chosen = set(_blocks()) | set(LATER) | _two_byte_codec("gb2312") | set(_emoji(unicode_data))
    chosen |= set(jieba_dictionary().decode()) | _unihan(unicode_data, "OtherMappings", "kTGH")
    if len(chosen) > NUM_CHARACTERS:
        raise ValueError(f"{len(chosen)} characters must be in, {NUM_CHARACTERS} fit: raise NUM_CHARACTERS")
    for file, field in HAN_FILL:
        fill = sorted(_unihan(unicode_data, file, field) - chosen)
        chosen.update(fill[: NUM_CHARACTERS - len(chosen)])
    return CharacterVocabulary.from_characters(chosen)


def _blocks() -> Iterator[str]:
    for first, last, _ in BLOCKS:
        for character in map(chr, range(first, last + 1)):
            if ucd_3_2_0.category(character) not in ("Cn", "Co", "Cc") or character in "\t\n\r":
                yield character


def _two_byte_codec(codec: str) -> set[str]:
    """Every character that a codec of two bytes from 0xA1 up can spell."""
    cells = (bytes([row, column]) for row in range(0xA1, 0xFF) for column in range(0xA1, 0xFF))
    return set("".join(cell.decode(codec, errors="ignore") for cell in cells))


def _unihan(unicode_data: Path, file: str, field: str) -> set[str]:
    with bz2.open(unicode_data / f"Unihan_{file}.txt.bz2", "rt", encoding="utf-8") as lines:
        rows = (line.split("\t") for line in lines if line.startswith("U+"))
        return {chr(int(code[2:], 16)) for code, name, _ in rows if name == field}


def _emoji(unicode_data: Path) -> Iterator[str]:
    with (unicode_data / "emoji" / "emoji-test.txt").open(encoding="utf-8") as lines:
        for line in lines:
            for code in line.split("#")[0].split(";")[0].split():
                yield chr(int(code, 16))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m datamodules.text.inventory", description=__doc__)
    parser.add_argument("out", type=Path, help="the tokenizer.json to write")
    parser.add_argument("--unicode-data", type=Path, default=Path("/usr/share/unicode"))
    arguments = parser.parse_args()
    arguments.out.write_bytes(build_inventory(arguments.unicode_data).to_json())


if __name__ == "__main__":
    main()
