"""One tokenizer for all tests of prepared data, real text, and a data set of all kinds of items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain_documents import plain

from datamodules.prepared import ShardWriter, TokenLayout, write_manifest
from datamodules.prepared.rows import EncodedDocument
from datamodules.text import DualTokenizer

CHINESE = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。"
ENGLISH = (
    "It was the best of times, it wasn't the worst; counterrevolutionaries' été of 2026 - in 人工智能.\n"
)


@pytest.fixture(scope="session")
def tokenizer() -> DualTokenizer:
    """Built-in characters and words."""
    return DualTokenizer()


@pytest.fixture(scope="session")
def layout(tokenizer: DualTokenizer) -> TokenLayout:
    return TokenLayout.of(tokenizer)


@pytest.fixture(scope="session")
def documents(tokenizer: DualTokenizer) -> list[EncodedDocument]:
    """Forty documents: texts of many lengths, alone and between images, sounds and values."""
    made: list[EncodedDocument] = []
    for number in range(40):
        text = tokenizer.encode((CHINESE + ENGLISH) * (number % 7) + f"第{number}回 🦜" * (number % 3))
        document: EncodedDocument = [("text", text, True)]
        if number % 4 == 1:
            document = [("image", b"\x89PNG" + bytes([number]) * 900, False), *document]
        if number % 4 == 2:
            question = ("text", tokenizer.encode(f"what is heard in {number}?"), False)
            document = [question, ("audio", b"RIFF" + bytes([number]) * 500, True), *document]
        if number % 4 == 3:
            document = [*document, ("series", {"x": [1.5, None, number], "名": "\ud800"}, True), *document]
        made.append(document)
    return made


Maker = Callable[..., Path]


@pytest.fixture
def make_set(documents: list[EncodedDocument], tokenizer: DualTokenizer, tmp_path: Path) -> Maker:
    """Makes data sets: `make_set(name, documents, ...)` -> its folder."""

    def make(
        name: str = "set",
        made: list[EncodedDocument] | None = None,
        own: DualTokenizer | None = None,
        tasks: int = 2,
        **sizes: Any,
    ) -> Path:
        folder, own = tmp_path / name, own or tokenizer
        chosen = documents if made is None else made
        sizes = {"max_shard_bytes": 20_000, "batch_bytes": 4_000, **sizes}
        for task in range(tasks):
            bounds = [len(chosen) * at // tasks for at in (task, task + 1)]
            with ShardWriter(folder / "shards", f"{task:05d}", TokenLayout.of(own), **sizes) as writer:
                for number in range(*bounds):
                    writer.add(f"{name}: {number}", chosen[number])
        write_manifest(folder, own, sources=[], records=[], config={})
        return folder

    return make


@pytest.fixture(scope="session")
def as_plain() -> Callable[[Any], list[Any]]:
    return plain
