"""The real text, image and audio modalities, and a model over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import CHARACTERS, WORDS, make_module

from datamodules import AudioModality, ImageModality, TextModality
from datamodules.text.vocabulary import CharacterVocabulary
from onn_lightning import OmniModule
from onn_lightning.modality import Modality


@pytest.fixture(scope="session")
def modalities(tmp_path_factory: pytest.TempPathFactory) -> list[Modality]:
    """Few characters, so that a model that knows nothing often writes bytes."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    vocabulary, words = folder / "tokenizer.json", folder / "words.txt"
    vocabulary.write_bytes(CharacterVocabulary.from_characters(CHARACTERS).to_json())
    words.write_text(WORDS, encoding="utf-8")
    return [
        TextModality(vocabulary=str(vocabulary), words=str(words)),
        ImageModality(patch_size=4, max_tokens=9, channels=1),
        AudioModality(sample_rate=8000, n_mels=16, patch_freq=16),
    ]


@pytest.fixture(scope="session")
def module(modalities: list[Modality]) -> OmniModule:
    """In float64: two ways to one number then differ by far less than two numbers do."""
    return make_module(modalities).double().eval()
