"""Kinds of characters: scripts by samples of each, whole blocks by Unicode's names."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from datamodules.prepare.filters import characters
from datamodules.prepare.filters.characters import code_points_of, fold_table, kind_table, kinds_of


@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        (characters.LATIN, "aZéßŁặＡ"),
        (characters.GREEK, "αΩἄ"),
        (characters.CYRILLIC, "яЁ"),
        (characters.HEBREW, "אש"),
        (characters.ARABIC, "عپ"),
        (characters.INDIC, "नத"),
        (characters.HANGUL, "한ㄱ"),
        (characters.HAN, "中龘㐀𠀀々〇⺀豈"),
        (characters.KANA, "あアーｱ"),
        (characters.UNSPACED, "กမ"),
        (characters.OTHER_LETTER, "ა𐎀"),
        (characters.DIGIT, "0９٣²①"),
        (characters.MARK, "\u0301\u093e"),
        (characters.PUNCTUATION, ".,。！？“”「」…—·、・'’"),
        (characters.SYMBOL, "+$€★😀|~^"),
        (characters.SPACE, " \t\r\u3000\xa0\u2028\ufeff\u200d\U000e0101"),
        (characters.NEWLINE, "\n"),
        (characters.CONTROL, "\x00\x1b\x85\x7f"),
        (characters.REPLACEMENT, "\ufffd"),
        (characters.UNASSIGNED, "\ue000\u0378\ufffe\U0010ffff\ud800"),
    ],
)
def test_every_sample_is_of_its_kind(kind: int, samples: str) -> None:
    assert kinds_of(code_points_of(samples)).tolist() == [kind] * len(code_points_of(samples))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CJK UNIFIED IDEOGRAPH", characters.HAN),
        ("HIRAGANA LETTER", characters.KANA),
        ("KATAKANA LETTER", characters.KANA),
        ("HANGUL SYLLABLE", characters.HANGUL),
        ("CYRILLIC SMALL LETTER", characters.CYRILLIC),
        ("GREEK SMALL LETTER", characters.GREEK),
        ("ARABIC LETTER", characters.ARABIC),
        ("LATIN SMALL LETTER", characters.LATIN),
    ],
)
def test_blocks_hold_what_unicode_names_so(name: str, kind: int) -> None:
    named = [code for code in range(0x30000) if unicodedata.name(chr(code), "").startswith(name)]
    right = np.mean(kind_table()[named] == kind)
    assert len(named) > 40 and right > 0.98  # a few historic letters stand in blocks of their own


def test_folding_makes_small_and_narrow() -> None:
    folded = fold_table()[code_points_of("AÉЯΩＡｚ１中あ")]
    assert folded.tobytes().decode("utf-32-le") == "aéяωaz1中あ"
