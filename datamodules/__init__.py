"""Modalities, corpora, packing and the LightningDataModule.

The public names are imported on first use: asking for the tokenizer does not load the audio stack.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.audio import AudioModality
    from datamodules.audio_text_data import AudioTextDataModule
    from datamodules.columns import Column
    from datamodules.growing import GrowingJsonLines
    from datamodules.hugging_face import HuggingFaceSource
    from datamodules.image import ImageModality
    from datamodules.image_text_data import ImageTextDataModule
    from datamodules.omni import OmniDataModule
    from datamodules.prepared import PreparedSource
    from datamodules.sources import JsonLines, Source, TextFiles
    from datamodules.text import DualTokenizer, TextModality
    from datamodules.text_data import TextDataModule

_HOMES = {
    "AudioModality": "datamodules.audio",
    "AudioTextDataModule": "datamodules.audio_text_data",
    "Column": "datamodules.columns",
    "DualTokenizer": "datamodules.text",
    "GrowingJsonLines": "datamodules.growing",
    "HuggingFaceSource": "datamodules.hugging_face",
    "ImageModality": "datamodules.image",
    "ImageTextDataModule": "datamodules.image_text_data",
    "JsonLines": "datamodules.sources",
    "OmniDataModule": "datamodules.omni",
    "PreparedSource": "datamodules.prepared",
    "Source": "datamodules.sources",
    "TextDataModule": "datamodules.text_data",
    "TextFiles": "datamodules.sources",
    "TextModality": "datamodules.text",
}

__all__ = [
    "AudioModality",
    "AudioTextDataModule",
    "Column",
    "DualTokenizer",
    "GrowingJsonLines",
    "HuggingFaceSource",
    "ImageModality",
    "ImageTextDataModule",
    "JsonLines",
    "OmniDataModule",
    "PreparedSource",
    "Source",
    "TextDataModule",
    "TextFiles",
    "TextModality",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'datamodules' has no attribute '{name}'; it offers {__all__}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
