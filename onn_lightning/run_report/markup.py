"""HTML that cannot be broken out of: every string is escaped unless it was made here.

Notable:
- `element` is the only way to markup; what it is given as text or attribute is data, whatever it holds.
- Characters that have no place in a page (controls, lone surrogates, changes of the writing direction) are
  shown as signs of their own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Container, Iterable

VOID = frozenset({"br", "hr", "img", "meta"})
"""Of HTML; elements of SVG are closed, or all that follows would be inside them."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class Safe(str):
    """A string that is markup."""

    __slots__ = ()


Content = str | None | Iterable["Content"]


def text(data: object) -> Safe:
    """Data as text of a page."""
    return Safe(html.escape(_UNPRINTABLE.sub(_sign, str(data)), quote=True))


def element(name: str, /, *content: Content, **attributes: object) -> Safe:
    """One element.

    Args:
        name: of it, from the code, never from data.
        content: text (escaped), markup (`Safe`), or iterables of both; None: nothing.
        attributes: a trailing `_` is dropped, other `_` become `-`; True: without a value; None, False: left
            out.
    """
    opening = name + "".join(
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Safe(f"<{opening}>" if name in VOID and not content else f"<{opening}>{join(*content)}</{name}>")


def join(*content: Content, by: str = "") -> Safe:
    """Several pieces one after the other."""
    return Safe(by.join(_piece(piece) for piece in content))


def table(
    caption: str, headings: Iterable[Content], rows: Iterable[Iterable[Content]], numbers: Container[int] = ()
) -> Safe:
    """A table whose first column names its rows.

    Args:
        caption: what it shows.
        headings: of its columns.
        rows: their cells.
        numbers: the columns that hold numbers, counted from 0.
    """

    def kind(place: int) -> str | None:
        return "number" if place in numbers else None

    head = [element("th", cell, scope="col", class_=kind(place)) for place, cell in enumerate(headings)]
    body = [
        element(
            "tr",
            [
                element("td", cell, class_=kind(place)) if place else element("th", cell, scope="row")
                for place, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    inner = element("caption", caption), element("thead", element("tr", head)), element("tbody", body)
    return element(
        "div", element("table", *inner), class_="scroll", tabindex=0, role="region", aria_label=caption
    )


def facts(pairs: Iterable[tuple[str, Content]]) -> Safe:
    """Names and what they stand for, those without anything left out."""
    return element(
        "dl",
        [
            element("div", element("dt", name), element("dd", value), class_=name.replace(" ", "-"))
            for name, value in pairs
            if value not in (None, "")
        ],
        class_="facts",
    )


def paragraph(*content: Content, class_: str | None = None) -> Safe:
    """A paragraph."""
    return element("p", *content, class_=class_)


def clipped(data: object, length: int) -> str:
    """The beginning of a text, with a word of what was cut."""
    whole = str(data)
    return whole if len(whole) <= length else f"{whole[:length]}… ({len(whole) - length:,} characters more)"


def _piece(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Safe):
        return content
    if isinstance(content, str):
        return text(content)
    return "".join(map(_piece, content))


def _attribute(key: str) -> str:
    return "viewBox" if key == "viewBox" else key.removesuffix("_").replace("_", "-")


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "�"
