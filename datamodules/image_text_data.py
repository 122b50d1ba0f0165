"""`ImageTextDataModule`: images and their captions, or any interleaving of images and text, from paths.

    ImageTextDataModule("data/captions.jsonl", validation="data/held_out.jsonl")

or in YAML

    data:
      class_path: datamodules.ImageTextDataModule
      init_args: {train: data/captions.jsonl, validation: data/held_out.jsonl}
"""

from __future__ import annotations

from typing import Any

from datamodules.corpora import Corpora, media_at
from datamodules.image import ImageModality
from datamodules.paths_data import PathsDataModule
from datamodules.text import TextModality


class ImageTextDataModule(PathsDataModule):
    """`OmniDataModule` with images and text.

    Args:
        train: a JSON Lines file (see `JsonLines`), a folder that `onn prepare` made, several of them, or
            sources by name.
        image: how images are encoded; None: `ImageModality()`.
        text: how text is encoded; None: built-in characters, jieba's words.
        settings: `validation`, `test` and `predict`, given like `train`, and the other arguments of
            `OmniDataModule` (`row_length`, `max_pixels_per_batch`, ...).
    """

    def __init__(
        self,
        train: Corpora,
        image: ImageModality | None = None,
        text: TextModality | None = None,
        **settings: Any,
    ) -> None:
        super().__init__([text or TextModality(), image or ImageModality()], media_at, train, **settings)
