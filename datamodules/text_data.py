"""`TextDataModule`: text alone, from paths.

    TextDataModule("data/books", validation="data/held_out", row_length=1024)

or in YAML

    data:
      class_path: datamodules.TextDataModule
      init_args: {train: data/books, validation: data/held_out, row_length: 1024}
"""

from __future__ import annotations

from typing import Any

from datamodules.corpora import Corpora, text_at
from datamodules.paths_data import PathsDataModule
from datamodules.text import TextModality


class TextDataModule(PathsDataModule):
    """`OmniDataModule` with text as its only modality.

    Args:
        train: a folder of `.txt` files, a JSON Lines file, a folder that `onn prepare` made, several of
            them, or sources by name.
        text: how text is encoded; None: built-in characters, jieba's words.
        settings: `validation`, `test` and `predict`, given like `train`, and the other arguments of
            `OmniDataModule` (`row_length`, `num_workers`, ...).
    """

    def __init__(self, train: Corpora, text: TextModality | None = None, **settings: Any) -> None:
        super().__init__([text or TextModality()], text_at, train, **settings)
