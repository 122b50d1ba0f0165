"""`Summary`: what came of a preparation, as the command prints it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from datamodules.prepared.manifest import Manifest

_EXAMPLE_WIDTH = 60
_MB = 1e6


@dataclass(frozen=True)
class Summary:
    """What a prepared data set holds, and what was dropped on the way.

    Args:
        output: where it is.
        documents, tokens: in it.
        bytes: of its shards.
        media_bytes: of which media are.
        corpus_bytes: that were read for it.
        records: of all steps, as in the manifest.
        seconds: that this run took; None: an earlier run had completed it.
    """

    output: Path
    documents: int
    tokens: int
    bytes: int
    media_bytes: int
    corpus_bytes: int
    records: list[dict[str, Any]]
    seconds: float | None

    @property
    def bytes_per_character(self) -> float | None:
        """Of everything but media; None: there is no text."""
        return (self.bytes - self.media_bytes) / self.tokens if self.tokens else None

    def lines(self) -> Iterator[str]:
        """For people, a line each."""
        rows = [("step", "kept", "dropped", "reason", "example"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for step, kept, dropped, reason, example in rows:
            yield (
                f"{step:<{widths[0]}}  {kept:>{widths[1]}}  {dropped:>{widths[2]}}  {reason:<{widths[3]}}  "
                f"{example}"
            ).rstrip()
        yield ""
        each = self.bytes_per_character
        yield (
            f"{self.documents:,} documents, {self.tokens:,} tokens of text"
            f"{'' if each is None else f' in {each:.2f} bytes a character'}"
            f"{f', {self.media_bytes / _MB:,.1f} MB of media' if self.media_bytes else ''}"
        )
        if self.seconds is None:
            yield f"complete since an earlier run: {self.output}"
        else:
            size, seconds = self.corpus_bytes / _MB, max(self.seconds, 1e-3)
            rates = f"{size / seconds:,.1f} MB/s, {self.records[0]['kept'] / seconds:,.0f} documents/s"
            yield f"{size:,.1f} MB read in {timedelta(seconds=round(seconds))} ({rates}): {self.output}"

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        for record in self.records:
            step, kept = record["step"], f"{record['kept']:,}"
            if not record["dropped"]:
                yield step, kept, "0", "", ""
            by_count = sorted(record["dropped"].items(), key=lambda entry: (-entry[1], entry[0]))
            for reason, count in by_count:
                examples = record["examples"].get(reason) or [{"id": "", "text": ""}]
                yield step, kept, f"{count:,}", reason, _example(examples[0])
                step = kept = ""


def summarised(output: Path, manifest: Manifest, seconds: float | None) -> Summary:
    """Summarise a data set.

    Args:
        output: where it is.
        manifest: of it.
        seconds: that this run took; None: it did nothing.
    """
    totals = manifest.totals.values()
    return Summary(
        output=output,
        documents=manifest.documents,
        tokens=sum(count.tokens for count in totals),
        bytes=sum(shard.bytes for shard in manifest.shards),
        media_bytes=sum(count.bytes for count in totals),
        corpus_bytes=manifest.config["corpus"]["bytes"],
        records=manifest.records,
        seconds=seconds,
    )


def _example(example: dict[str, str]) -> str:
    text = " ".join(example["text"].split())
    short = text if len(text) <= _EXAMPLE_WIDTH else f"{text[:_EXAMPLE_WIDTH]}..."
    return f"{example['id']}{f': {short}' if short else ''}"
