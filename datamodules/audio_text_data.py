"""`AudioTextDataModule`: sounds and their transcripts, or any interleaving of sounds and text, from paths.

    AudioTextDataModule("data/transcripts.jsonl", validation="data/held_out.jsonl")

or in YAML

    data:
      class_path: datamodules.AudioTextDataModule
      init_args: {train: data/transcripts.jsonl, validation: data/held_out.jsonl}
"""

from __future__ import annotations

from typing import Any

from datamodules.audio import AudioModality
from datamodules.corpora import Corpora, media_at
from datamodules.paths_data import PathsDataModule
from datamodules.text import TextModality


class AudioTextDataModule(PathsDataModule):
    """`OmniDataModule` with sounds and text.

    Args:
        train: a JSON Lines file (see `JsonLines`), a folder that `onn prepare` made, several of them, or
            sources by name.
        audio: how sounds are encoded; None: `AudioModality()`.
        text: how text is encoded; None: built-in characters, jieba's words.
        settings: `validation`, `test` and `predict`, given like `train`, and the other arguments of
            `OmniDataModule` (`row_length`, `max_pixels_per_batch`, ...).
    """

    def __init__(
        self,
        train: Corpora,
        audio: AudioModality | None = None,
        text: TextModality | None = None,
        **settings: Any,
    ) -> None:
        super().__init__([text or TextModality(), audio or AudioModality()], media_at, train, **settings)
