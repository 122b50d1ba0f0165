"""Stop strings in streams cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onn_lightning.generation.stopping import StopFilter

texts = st.text(alphabet="ab\n止", max_size=30)
stops = st.lists(st.text(alphabet="ab\n止", min_size=1, max_size=5), max_size=4)


def reference(text: str, stop: list[str]) -> str:
    """Character by character: the first end of the text so far that is a stop string is cut off."""
    for end in range(1, len(text) + 1):
        lengths = [len(word) for word in stop if text[:end].endswith(word)]
        if lengths:
            return text[: end - max(lengths)]
    return text


def cut(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


@settings(max_examples=500, deadline=None)
@given(text=texts, stop=stops, cuts=st.lists(st.integers(0, 30), max_size=8))
def test_the_shown_text_ends_before_the_first_complete_stop_string_however_it_is_cut(text, stop, cuts):
    stop_filter = StopFilter(stop)
    shown = "".join([stop_filter.push(piece) for piece in cut(text, cuts)]) + stop_filter.flush()
    assert shown == reference(text, stop)
    assert stop_filter.stopped == any(word in text for word in stop)


@settings(max_examples=200, deadline=None)
@given(text=texts, stop=stops)
def test_text_is_held_back_only_while_it_may_begin_a_stop_string(text, stop):
    stop_filter, seen, shown = StopFilter(stop), "", ""
    for character in text:
        seen += character
        shown += stop_filter.push(character)
        if stop_filter.stopped:
            return
        held = seen[len(shown) :]
        assert seen.startswith(shown)
        assert not held or any(word.startswith(held) for word in stop)


def test_nothing_is_shown_after_the_stop_string():
    stop_filter = StopFilter(["."])
    assert stop_filter.push("one. two") == "one"
    assert stop_filter.push(" three") == ""
    assert stop_filter.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopFilter(["ok", ""])
