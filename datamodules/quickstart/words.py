"""`words.txt`: the word list of the quickstart's tokenizer, in jieba's dictionary format.

Counted on the TRAINING texts only: words of the held-out chapters and plays stay unknown unless
they also occur there.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path

from datamodules.quickstart.part import Part, Workplace
from datamodules.text.words import most_frequent, word_lines

MOST_FREQUENT = 4_000

_ENGLISH_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_CHINESE_WORD = re.compile(r"[\u4e00-\u9fff]+")


def words_part() -> Part:
    """`words.txt`: one `word count` a line, by falling count."""
    recipe = json.dumps({"version": 1, "most_frequent": MOST_FREQUENT})
    return Part(name="words", build=_build, recipe=recipe, needs=("chinese", "english"))


def english_counts(texts: list[str]) -> Counter[str]:
    """Counts of lower-cased words of letters, with apostrophes inside."""
    return Counter(word for text in texts for word in _ENGLISH_WORD.findall(text.lower()))


def chinese_counts(texts: list[str]) -> Counter[str]:
    """Counts of jieba's words that consist of Chinese characters."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()  # of its own: words that the program gave to the shared one must not count
    words = (word for text in texts for word in cutter.cut(text, HMM=False))
    return Counter(word for word in words if _CHINESE_WORD.fullmatch(word))


def _build(workplace: Workplace) -> dict[str, int]:
    train = workplace.finished / "train"
    english, chinese = english_counts(_read(train / "en")), chinese_counts(_read(train / "zh"))
    chosen = dict(most_frequent(english, MOST_FREQUENT) + most_frequent(chinese, MOST_FREQUENT))
    (workplace.stage / "words.txt").write_bytes(word_lines(most_frequent(chosen, len(chosen))))
    return {"words": len(chosen)}


def _read(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
