"""What was found, as plain data for `onn inspect --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from onn_lightning.inspection.counts import Counts, Totals
from onn_lightning.inspection.inspector import Inspected
from onn_lightning.inspection.numbers import FeatureNumbers
from onn_lightning.inspection.page import words_of
from onn_lightning.inspection.pieces import PackedPiece, Run


def plain_batch(batch: Inspected) -> dict[str, Any]:
    """One batch with its pieces, whole texts included."""
    return {
        "name": batch.name,
        "number": batch.number,
        "sheet": str(batch.sheet),
        **plain_counts(batch.counts),
        "pieces": [_plain_piece(piece) for piece in batch.pieces],
    }


def plain_totals(totals: Totals) -> dict[str, Any]:
    """All batches together."""
    return {
        **plain_counts(totals.counts),
        "sources": dict(totals.sources),
        "bad_samples": dict(totals.bad_samples),
    }


def plain_counts(counts: Counts) -> dict[str, Any]:
    """Counts with what follows from them."""
    return {**asdict(counts), "tokens": counts.tokens, "padding": counts.padding}


def _plain_piece(piece: PackedPiece) -> dict[str, Any]:
    return {
        "row": piece.row,
        "number": piece.number,
        "start": piece.start,
        "tokens": len(piece),
        "continues": piece.continues,
        "goes_on": piece.goes_on,
        "runs": [_plain_run(run) for run in piece.runs],
    }


def _plain_run(run: Run) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "modality": run.modality,
        "tokens": len(run),
        "predicted": int(run.supervised.sum()),
        "features": asdict(FeatureNumbers.of(run.segment.features)),
    }
    preview = run.preview
    if preview is not None and preview.text is not None:
        plain |= {"text": "".join(preview.text), "words": words_of(preview)}
    if preview is not None and preview.caption:
        plain["caption"] = preview.caption
    return plain
