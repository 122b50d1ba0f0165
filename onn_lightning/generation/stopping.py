"""Where a stream of text ends: stop strings, even where they straddle the pieces of the stream.

Notable: text that may turn out to be the beginning of a stop string is held back until that is
decided, so a stop string is never shown, not even in part. The end does not depend on how the text is
cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text through up to the first stop string that is complete.

    Args:
        stop: the stop strings; of several that are completed by the same character, the longest counts.
    Raises:
        ValueError: for an empty stop string.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise ValueError("a stop string is empty: it would end every text at once; leave it out")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take the next piece of text; returns what is certain to stand before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._held = True, ""
            end, minus_length = min(found)
            return text[: end + minus_length]
        passed = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[passed:]
        return text[:passed]

    def flush(self) -> str:
        """What was held back when the text ended without completing a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
