"""Reads a page as strictly as can be: what a browser would quietly mend fails here."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img"}
OURS = re.compile(r"#[\w-]+|data:image/png;base64,[A-Za-z0-9+/=]+")
FETCHING = {"src", "href", "srcset", "poster", "action", "data", "background", "xlink:href", "formaction"}


class StrictPage(HTMLParser):
    """A page, taken apart.

    Args:
        html: of the whole page.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.ids = [given["id"] for _, given in self.attributes if "id" in given]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> means <{tag}> in HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def text(self) -> str:
        """All that a reader sees."""
        return " ".join(" ".join(text.split()) for tag, text in self.texts if tag not in ("script", "style"))

    def check(self) -> None:
        """Assert that the page is whole, needs nothing from elsewhere and can be read by a screen reader."""
        assert len(set(self.ids)) == len(self.ids), "an id occurs twice"
        by_id = set(self.ids)
        for tag, given in self.attributes:
            for name in FETCHING & given.keys():
                assert OURS.fullmatch(given[name]), f"<{tag} {name}={given[name][:80]!r}>"
                assert not given[name].startswith("#") or given[name][1:] in by_id, given[name]
            assert not any(name.startswith("on") for name in given), f"<{tag}> has a handler: {given}"
            for other in given.get("aria-labelledby", "").split():
                assert other in by_id, f"nothing is called {other}"
            if tag == "img":
                assert given["alt"]
            if tag == "svg":
                assert given.get("aria-hidden") == "true" or given.get("role") == "img"
            assert tag not in ("link", "iframe", "object", "embed", "base", "form", "foreignobject")
        styles = "".join(text for tag, text in self.texts if tag == "style")
        assert "url(" not in styles and "@import" not in styles
        tags = [tag for tag, _ in self.attributes]
        assert tags.count("script") == 2 and tags.count("h1") == 1 and tags.count("main") == 1
        assert tags.count("table") == tags.count("caption")
        assert all(given.get("scope") for tag, given in self.attributes if tag == "th")
