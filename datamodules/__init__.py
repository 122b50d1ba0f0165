"""Modalities, corpora, packing and the LightningDataModule.

The public names are imported on first use: asking for the tokenizer does not load the audio stack.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.audio import AudioModality
    from datamodules.image import ImageModality
    from datamodules.omni import OmniDataModule
    from datamodules.prepared import PreparedSource
    from datamodules.sources import JsonLines, Source, TextFiles
    from datamodules.text import DualTokenizer, TextModality

_HOMES = {
    "AudioModality": "datamodules.audio",
    "DualTokenizer": "datamodules.text",
    "ImageModality": "datamodules.image",
    "JsonLines": "datamodules.sources",
    "OmniDataModule": "datamodules.omni",
    "PreparedSource": "datamodules.prepared",
    "Source": "datamodules.sources",
    "TextFiles": "datamodules.sources",
    "TextModality": "datamodules.text",
}

__all__ = [
    "AudioModality",
    "DualTokenizer",
    "ImageModality",
    "JsonLines",
    "OmniDataModule",
    "PreparedSource",
    "Source",
    "TextFiles",
    "TextModality",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'datamodules' has no attribute '{name}'; it offers {__all__}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
