"""`MediaTextDataModule`: what image-text and audio-text data have in common."""

from __future__ import annotations

from typing import Any

from datamodules.corpora import Corpora, media_at, named_sources
from datamodules.omni import OmniDataModule
from datamodules.text import TextModality
from onn_lightning.modality import Modality


class MediaTextDataModule(OmniDataModule):
    """`OmniDataModule` with one kind of media and text, interleaved in any way.

    Args:
        media: how media are encoded.
        train: a JSON Lines file (see `JsonLines`), a folder that `onn prepare` made, several of them, or
            sources by name.
        validation, test, predict: the same, each source evaluated on its own.
        text: how text is encoded; None: built-in characters, jieba's words.
        settings: the other arguments of `OmniDataModule` (`row_length`, `max_pixels_per_batch`, ...).
    """

    def __init__(
        self,
        media: Modality,
        train: Corpora,
        validation: Corpora | None = None,
        test: Corpora | None = None,
        predict: Corpora | None = None,
        text: TextModality | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            modalities=[text or TextModality(), media],
            train=named_sources(train, media_at),
            validation=named_sources(validation, media_at),
            test=named_sources(test, media_at),
            predict=named_sources(predict, media_at),
            **settings,
        )
