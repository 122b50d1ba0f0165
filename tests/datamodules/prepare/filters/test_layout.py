"""Lines and paragraphs against plain Python."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from datamodules.prepare.filters.characters import code_points_of, kinds_of
from datamodules.prepare.filters.layout import Lines, find_lines

texts = st.text(alphabet="ab \n\n\t\u3000\x85\u2028中", max_size=40)
SPACES = " \t\u3000\u2028"


def lines_of(text: str) -> Lines:
    code_points = code_points_of(text)
    return find_lines(code_points, kinds_of(code_points))


def plain_paragraphs(text: str) -> list[list[str]]:
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip(SPACES):
            paragraphs[-1].append(line.strip(SPACES))
        elif paragraphs[-1]:
            paragraphs.append([])
    return [paragraph for paragraph in paragraphs if paragraph]


@given(texts)
def test_lines_end_at_line_feeds_alone_and_blank_ones_are_none(text: str) -> None:
    lines, expected = lines_of(text), plain_paragraphs(text)
    found = [text[start:end] for start, end in zip(lines.starts, lines.ends, strict=True)]
    assert found == [line for paragraph in expected for line in paragraph]
    assert lines.paragraphs.tolist() == [i for i, paragraph in enumerate(expected) for _ in paragraph]
    assert lines.lengths.tolist() == [len(line) for line in found]


@given(texts)
def test_hashes_of_lines_and_paragraphs_are_equal_for_equal_ones_only(text: str) -> None:
    expected = plain_paragraphs(text + "\n\n" + text)
    lines = lines_of(text + "\n\n" + text)
    plain = [line for paragraph in expected for line in paragraph]
    for units, hashes in ((plain, lines.hashes), (expected, lines.joined().hashes)):
        for (a, x), (b, y) in combinations(zip(units, hashes.tolist(), strict=True), 2):
            assert (a == b) == (x == y)


def test_a_paragraph_reaches_from_its_first_line_to_its_last() -> None:
    text = " one\ntwo \n\n three"
    joined = lines_of(text).joined()
    assert [text[start:end] for start, end in zip(joined.starts, joined.ends, strict=True)] == [
        "one\ntwo",
        "three",
    ]
