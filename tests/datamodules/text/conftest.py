"""One tokenizer for all text tests, and strings that mean trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.text import DualTokenizer
from datamodules.text.vocabulary import CharacterVocabulary

SMALL_WORDS = (
    "ab 40\nabc 9\nbc 30\nd 7\ndon 2\ndon't 5\n12 3\n人 90\n人工 30\n人工智能 20\n工 9\n智 4\n能 60\n"
)


@pytest.fixture(scope="session")
def tokenizer() -> DualTokenizer:
    """Built-in characters and words."""
    return DualTokenizer()


@pytest.fixture
def small_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DualTokenizer]:
    """Makes tokenizers of few words, cached in a folder of the test's own."""
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "cache"))

    def make(words: str = SMALL_WORDS, user_words: str | None = None, **options: object) -> DualTokenizer:
        files = {"words": words.encode()}
        if user_words is not None:
            files["user_words"] = user_words.encode()
        if characters := options.pop("characters", None):
            files["vocabulary"] = CharacterVocabulary.from_characters(str(characters)).to_json()
        return DualTokenizer.from_files(files, **options)  # type: ignore[arg-type]

    return make
