"""Quality filters: one file a kind, chosen by `class_path` in a config's `filters`.

`characters`, `words` and `layout` turn a text into arrays, on which the filters count. Defaults are those of
Gopher, C4 and FineWeb where these fit Chinese and English, verse and drama too; every one is an argument.

Not datatrove's own filters of these names: they take their words from a table of language names (Chinese:
spaCy with jieba, 2 ms a thousand characters), have no place for another segmenter and no thresholds
that count characters; given fast words, Gopher's still run at 1 to 5 MB/s, ours at 12 and more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.prepare.filters.language import LanguageFilter
    from datamodules.prepare.filters.length import LengthFilter
    from datamodules.prepare.filters.lines import LineFilter
    from datamodules.prepare.filters.media import MediaFilter
    from datamodules.prepare.filters.model import ModelFilter
    from datamodules.prepare.filters.repetition import RepetitionFilter
    from datamodules.prepare.filters.symbols import SymbolFilter

_HOMES = {
    "LanguageFilter": "language",
    "LengthFilter": "length",
    "LineFilter": "lines",
    "MediaFilter": "media",
    "ModelFilter": "model",
    "RepetitionFilter": "repetition",
    "SymbolFilter": "symbols",
}

__all__ = [
    "LanguageFilter",
    "LengthFilter",
    "LineFilter",
    "MediaFilter",
    "ModelFilter",
    "RepetitionFilter",
    "SymbolFilter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:  # imported on first use: media and model bring torch
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {__all__}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
