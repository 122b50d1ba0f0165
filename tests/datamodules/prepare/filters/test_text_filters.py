"""All filters of text together: what they must keep, how fast they are, and how they run in a pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from sample_texts import (
    CHAPTER,
    CLASSICS,
    ESSAY,
    PLAY,
    QUICKSTART,
    captioned,
    document,
    text_filters,
)

from datamodules.prepare import filters
from datamodules.prepare.document import Item, pack
from datamodules.prepare.records import merged_records
from datamodules.prepare.step import Filter

FILTERS = pytest.mark.parametrize("kind", text_filters(), ids=lambda kind: kind.name)


@FILTERS
@pytest.mark.parametrize("text", CLASSICS, ids=("chapter", "play", "essay"))
def test_a_chapter_a_play_and_an_essay_in_two_languages_are_kept(kind: Filter, text: str) -> None:
    assert kind.judge(document(text)) is None


@FILTERS
@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_classic_of_the_quickstart_data_is_kept(kind: Filter, language: str) -> None:
    files = sorted((QUICKSTART / language).glob("*.txt"))
    if not files:
        pytest.skip("the quickstart data is not here: onn fetch quickstart")
    reasons = {file.name: kind.judge(document(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: reason for name, reason in reasons.items() if reason} == {}


@FILTERS
def test_documents_without_text_are_kept(kind: Filter) -> None:
    assert kind.judge(pack([Item("image", media=b"")], "pictures: 1", "pictures")) is None
    assert kind.judge(pack([Item("series", value=[1, 2])], "numbers: 1", "numbers")) is None


@FILTERS
@pytest.mark.parametrize("text", ["zero 数字零", "7", "猫", "A cat…", "#12", "ゼロ", "•"])
def test_captions_are_kept_however_short(kind: Filter, text: str) -> None:
    assert kind.judge(captioned(text)) is None


@FILTERS
@pytest.mark.parametrize(
    "text", ["\ud800 a lone surrogate", "\n\n", " ", "\u2028", "\x85a\x0bb", "a", "中", "\U0010ffff"]
)
def test_no_text_however_odd_makes_a_filter_fail(kind: Filter, text: str) -> None:
    kind.judge(document(text))


@FILTERS
def test_five_megabytes_a_second_on_long_and_short_documents(kind: Filter) -> None:
    for texts in ([(CHAPTER + PLAY + ESSAY) * 100], [CHAPTER, PLAY, ESSAY] * 100):
        documents = [document(text) for text in texts]
        kind.judge(documents[0])  # compiles
        size = sum(len(text.encode()) for text in texts)
        # what else runs on the machine takes caches and clock away, but not all the time
        assert any(size / _seconds(kind, documents) > 5e6 for _ in range(40))


def _seconds(kind: Filter, documents: list[Document]) -> float:
    start = time.process_time()
    for each in documents:
        kind.judge(each)
    return time.process_time() - start


def test_filters_run_in_worker_processes_and_record_what_they_dropped(tmp_path: Path) -> None:
    junk = [
        "买买买！" * 100,
        "1234 5678 " * 100,
        "Home is where the menu of the page is\n" * 50,
        "Перевод на русский язык готов. " * 20,
    ]
    texts = [CHAPTER, *junk[:2], PLAY, *junk[2:], ESSAY]

    def prepared(workers: int) -> list[dict[str, Any]]:
        folder = tmp_path / str(workers)
        chosen = text_filters()
        for order, kind in enumerate(chosen):
            kind.record_to(folder / "records", order)
        source: list[Any] = [[document(text, f"corpus: {number}") for number, text in enumerate(texts)]]
        executor = LocalPipelineExecutor(
            [*source, *chosen], tasks=2, workers=workers, logging_dir=str(folder / "logs")
        )
        executor.run()
        return [record.to_json() for record in merged_records(folder / "records", range(2))]

    alone, together = prepared(1), prepared(2)
    assert json.dumps(alone) == json.dumps(together)
    assert alone[-1]["kept"] == 2 * 3  # both tasks read the same list
    assert [list(record["dropped"]) for record in alone] == [
        ["language: cyrillic"],
        [],
        ["too many digits"],
        ["one 3-character sequence too often", "repeated lines"],
        [],
    ]
    assert alone[2]["examples"]["too many digits"][0]["id"] == "corpus: 2"


IMPORTS = """
import sys
from datamodules.prepare.deduplication import Deduplication
from datamodules.prepare.filters import LanguageFilter, LengthFilter, LineFilter
from datamodules.prepare.filters import RepetitionFilter, SymbolFilter
print(sorted({"torch", "spacy", "nltk", "jieba", "onn_lightning.module", "lightning"} & set(sys.modules)))
"""


def test_text_filters_and_deduplication_load_neither_torch_nor_a_word_splitter() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]"]


def test_every_filter_is_offered_by_its_name() -> None:
    for name in filters.__all__:
        assert issubclass(getattr(filters, name), Filter)
    with pytest.raises(AttributeError, match="it offers"):
        filters.NoFilter  # noqa: B018
