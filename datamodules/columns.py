"""`Column`: which column of anybody's table holds which item of a document.

Notable: shared by the sources that training reads and by the readers of the offline pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column of a flat record, one item of its document.

    Args:
        name: key of the record.
        modality: what it holds.
        supervised: False: read by the model, never predicted.
        optional: a record may lack it, or have null or blank text there; others with it are bad.
    """

    name: str
    modality: str = "text"
    supervised: bool = True
    optional: bool = False
