"""Length, symbols and lines: what each rule drops, in Chinese and in English."""

from __future__ import annotations

import base64

import pytest
from sample_texts import CHAPTER, ESSAY, PLAY, captioned, document

from datamodules.prepare.filters.length import LengthFilter
from datamodules.prepare.filters.lines import LineFilter
from datamodules.prepare.filters.symbols import SymbolFilter

ENCODED = base64.b64encode(bytes(range(256)) * 8).decode().replace("+", "a").replace("/", "b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("好的，谢谢。", "too short"),
        ("Thank you very much indeed.", "too short"),
        ("。！？" * 100, "too short"),
        ("中" * 79, "too short"),
        ("中" * 80, None),
        ("word " * 49, "too short"),
        ("word " * 50, None),
        (ESSAY + ENCODED, "a word too long"),
        ("a b c d e f g h i j " * 5, "words too short"),
        ("internationalisation " * 50, "words too long"),
        (CHAPTER + " a b c d" * 20, None),  # single letters among Chinese
    ],
)
def test_lengths(text: str, reason: str | None) -> None:
    assert LengthFilter().judge(document(text)) == reason


def test_the_longest_text_is_an_argument() -> None:
    assert LengthFilter(max_characters=100).judge(document(CHAPTER)) == "too long"
    assert LengthFilter(max_characters=100).judge(captioned(CHAPTER)) == "too long"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ESSAY + "\ufffd" * 10, "broken characters"),
        (ESSAY + "\x00\x01" * 5, "broken characters"),
        (ESSAY + "\ue000" * 10, "broken characters"),
        (CHAPTER.encode("utf-8").decode("latin-1"), "broken characters"),
        (CHAPTER + "锟斤拷" * 3, "broken characters"),
        (ESSAY.replace("\n", "\r\n"), None),
        ("\ufeff" + CHAPTER, None),
        ("电话 13800138000 邮编 100871 " * 10, "too many digits"),
        ("+---+---+ | a | b | " * 20, "too few letters"),
        ("★☆★☆ 好 ★☆★☆" * 20, "too few letters"),
        ("#topic #news #today " * 20, "too many hashes"),
        ("#话题# #新闻# #今日头条# " * 20, "too many hashes"),
        ("Well... so... then... maybe... later... " * 10, "too many ellipses"),
        ("她说……他说……我说……大家都说……" * 10, "too many ellipses"),
        ("\n".join(f"- point of {word} to remember" for word in ESSAY.split()[:60]), "mostly bullets"),
        ("\n".join(f"●　{line}" for line in CHAPTER.split("\n")), "mostly bullets"),
        (
            "\n".join(line + " and so on till the end of time..." for line in PLAY.splitlines() if line),
            "lines that break off",
        ),
        ("\n".join(line + "，如此这般说了一遍……" for line in CHAPTER.split("。")), "lines that break off"),
    ],
)
def test_symbols(text: str, reason: str | None) -> None:
    assert SymbolFilter().judge(document(text)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ESSAY + "Lorem ipsum dolor sit amet.", "lorem ipsum"),
        (ESSAY + "if (a) { b(); } else { c(); }", "curly braces"),
        (PLAY * 5 + "{sic}", None),
        ("\n".join(ESSAY.replace(".", "").split(", ")) * 3, "no sentence ends"),
        ("\n".join(f"{word} home page" for word in ESSAY.split()), "no sentence ends"),
        ("首页\n新闻中心\n产品展示\n联系我们\n" * 12, "no sentence ends"),
        ("Click here.\nRead more!\nSign up.\n" * 12, "short lines"),
        ("很好。\n不错！\n已收到。\n支持楼主。\n" * 12, "short lines"),
        (
            "Please enable JavaScript.\nOur Privacy Policy has changed since the last time.\n" * 8,
            "page furniture",
        ),
        (ESSAY + "本站版权所有。\n您的浏览器不支持播放。\n", "page furniture"),
    ],
)
def test_lines(text: str, reason: str | None) -> None:
    assert LineFilter().judge(document(text)) == reason


def test_a_book_about_javascript_is_no_furniture() -> None:
    assert LineFilter().judge(document(PLAY + "\nThe JavaScript of the bards was rhyme.\n")) is None


def test_letters_that_grow_when_lowered_do_not_shift_the_lines() -> None:
    text = "İ" * 500 + "\n" + "Here we use cookies, as in our Terms of Use.\n" + ESSAY
    assert LineFilter(max_furniture_lines=0).judge(document(text)) == "page furniture"
