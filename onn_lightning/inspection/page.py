"""A batch as text for a terminal: counts, and every piece with the boundaries of its words.

Notable:
- Marks: `|` between words that nothing else separates, `⟨eos⟩` a special token, `⟪...⟫` what is read but
  not predicted, `↵` a line break. The first token of a piece is never predicted, which is not worth a mark.
- Lines are folded by the width they take on a terminal, where a Chinese character takes two columns.
- A modality without a preview shows the statistics of its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from unicodedata import combining, east_asian_width

from onn_lightning.inspection.counts import Counts, Totals
from onn_lightning.inspection.numbers import FeatureNumbers
from onn_lightning.inspection.pieces import PackedPiece, Run
from onn_lightning.modality import Preview

LEGEND = (
    "piece 2.5: row 2, piece 5; text: | between words, ⟨..⟩ special token, ⟪..⟫ read but not predicted, "
    "↵ line break"
)

_CONTROLS = {ord("\n"): "↵", ord("\r"): "␍", ord("\t"): "⇥"}


def counts_lines(counts: Counts) -> list[str]:
    """Counts of a batch or of several, one modality a line."""
    row_length = counts.places // max(1, counts.rows)
    parts = [f"{counts.pieces:,} pieces of documents"]
    parts += [f"{counts.continued:,} continue one begun earlier"] if counts.continued else []
    parts += [f"{counts.unfinished:,} go on elsewhere"] if counts.unfinished else []
    lines = [
        f"{counts.rows:,} rows x {row_length:,} tokens, {counts.places - counts.tokens:,} of them padding "
        f"({counts.padding:.1%}); {', '.join(parts)}"
    ]
    width = max(map(len, counts.modalities), default=0)
    for name, own in counts.modalities.items():
        share = own.tokens / max(1, counts.tokens)
        media = f"; {own.media:,} media, {own.pixels:,} pixels or cells" if own.media else ""
        lines.append(
            f"{name:{width}}  {own.tokens:>9,} tokens {share:>6.1%}, {own.targets:>9,} predicted{media}"
        )
    return lines


def totals_lines(totals: Totals) -> list[str]:
    """Totals over all batches, the share of each source, what was skipped."""
    lines = counts_lines(totals.counts)
    width = max(map(len, totals.sources), default=0)
    lines += [f"source {name:{width}} {share:>6.1%} of the tokens" for name, share in totals.sources.items()]
    lines += [f"bad samples skipped in {name}: {count:,}" for name, count in totals.bad_samples.items()]
    return lines


def piece_lines(piece: PackedPiece, limit: int, width: int) -> list[str]:
    """One piece, run by run.

    Args:
        piece: what to show.
        limit: tokens of text to show of each run; 0: all.
        width: columns of the terminal.
    """
    head = f"piece {piece.row}.{piece.number}: {len(piece):,} tokens from place {piece.start:,}"
    head += ", continues a document" if piece.continues else ""
    head += ", goes on in another piece" if piece.goes_on else ""
    lines = [head]
    names = max(len(run.modality) for run in piece.runs)
    for number, run in enumerate(piece.runs):
        about = f"  {run.modality:{names}}  "
        indent = " " * len(about)
        folded = fold(_about(run, opens_piece=number == 0, limit=limit), width - len(about))
        lines += [(indent if later else about) + line for later, line in enumerate(folded)]
    return lines


def _about(run: Run, opens_piece: bool, limit: int) -> str:
    preview = run.preview
    if preview is not None and preview.text is not None:
        return marked_text(run, preview, opens_piece, limit)
    seen = str(FeatureNumbers.of(run.segment.features)) if preview is None else preview.caption
    state = "" if run.supervised.any() else ", read but not predicted"
    return f"{len(run):,} tokens{state}: {seen}"


def marked_text(run: Run, preview: Preview, opens_piece: bool = False, limit: int = 0) -> str:
    """The text of a run with all marks.

    Args:
        run: tokens of text.
        preview: of them.
        opens_piece: whether the run begins a piece.
        limit: tokens to show; 0: all.
    """
    assert preview.text is not None
    shown = min(len(run), limit) if limit else len(run)
    predicted = run.supervised.tolist()
    if opens_piece and len(run) > 1:
        predicted[0] = predicted[1]
    written: list[str] = []
    word_begins = in_context = False
    for index, text in enumerate(preview.text[:shown]):
        if predicted[index] == in_context:
            written.append("⟫" if in_context else "⟪")
            in_context = not in_context
        word_begins |= preview.word_starts is not None and preview.word_starts[index]
        if not text:  # of a character spelled in bytes, its last token shows it
            continue
        if word_begins and written and _needs_mark(written[-1], text):
            written.append("|")
        written.append(_visible(text))
        word_begins = False
    written.append("⟫" if in_context else "")
    written.append(f" … and {len(run) - shown:,} tokens more" if shown < len(run) else "")
    return "".join(written)


def words_of(preview: Preview) -> list[str] | None:
    """The text of a preview word by word, None where it has no words."""
    if preview.text is None or preview.word_starts is None:
        return None
    starts = [index for index, is_start in enumerate(preview.word_starts) if is_start or not index]
    ends = [*starts[1:], len(preview.text)]
    return ["".join(preview.text[start:end]) for start, end in zip(starts, ends, strict=True)]


def fold(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns and at least one character, cut after a space where one is near."""
    lines, current, room = [], "", width
    for character in text:
        columns = columns_of(character)
        if columns > room and current:
            space = current.rfind(" ") + 1
            cut = space if space > 0.7 * len(current) else len(current)
            lines.append(current[:cut])
            current = current[cut:]
            room = width - columns_of(current)
        current += character
        room -= columns
    return [*lines, current]


def columns_of(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(_columns(text))


def _columns(text: str) -> Iterator[int]:
    for character in text:
        yield 0 if combining(character) else 2 if east_asian_width(character) in "WF" else 1


def _needs_mark(before: str, after: str) -> bool:
    return before[-1].isalnum() and after[0].isalnum()


def _visible(text: str) -> str:
    visible = text.translate(_CONTROLS)
    return visible if visible.isprintable() else visible.encode("unicode_escape").decode()
