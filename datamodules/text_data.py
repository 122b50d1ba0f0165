"""`TextDataModule`: text alone, from paths.

    TextDataModule("data/books", validation="data/held_out", row_length=1024)

or in YAML

    data:
      class_path: datamodules.TextDataModule
      init_args: {train: data/books, validation: data/held_out, row_length: 1024}
"""

from __future__ import annotations

from typing import Any

from datamodules.corpora import Corpora, named_sources, text_at
from datamodules.omni import OmniDataModule
from datamodules.text import TextModality


class TextDataModule(OmniDataModule):
    """`OmniDataModule` with text as its only modality.

    Args:
        train: a folder of `.txt` files, a JSON Lines file, a folder that `onn prepare` made, several of
            them, or sources by name.
        validation, test, predict: the same, each source evaluated on its own.
        text: how text is encoded; None: built-in characters, jieba's words.
        settings: the other arguments of `OmniDataModule` (`row_length`, `num_workers`, ...).
    """

    def __init__(
        self,
        train: Corpora,
        validation: Corpora | None = None,
        test: Corpora | None = None,
        predict: Corpora | None = None,
        text: TextModality | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            modalities=[text or TextModality()],
            train=named_sources(train, text_at),
            validation=named_sources(validation, text_at),
            test=named_sources(test, text_at),
            predict=named_sources(predict, text_at),
            **settings,
        )
