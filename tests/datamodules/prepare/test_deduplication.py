"""Deduplication over real files and tasks: what is a copy, which one stays, and what does not matter."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from dedup_corpora import (
    chinese,
    cut,
    deduplicated,
    drop,
    edited,
    english,
    find,
    jaccard,
    numbered,
    sign,
)

from datamodules.prepare.deduplication import Deduplication
from datamodules.prepare.document import Item, pack

QUICKSTART = Path(__file__).parents[3] / "data" / "quickstart" / "train"
Write = Callable[[random.Random, int], str]
WRITERS = pytest.mark.parametrize("write", [chinese, english])


def corpus() -> list[str]:
    """40 distinct texts in two languages, then 3 exact and 3 near copies of some of them."""
    draw = random.Random(0)
    texts = [write(draw, 150) for write in (chinese, english) for _ in range(20)]
    copies = [texts[3], edited(draw, texts[3], 3), texts[25], edited(draw, texts[30], 3)]
    copies += [edited(draw, texts[19], 4), copies[0]]
    return texts + copies


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_planted_copies_are_dropped_and_all_else_is_kept(tmp_path: Path) -> None:
    outcome = deduplicated(corpus(), tmp_path, tasks=4)
    assert outcome.kept == [str(number) for number in range(40)]
    assert outcome.reasons == {"exact copy": 3, "near copy": 3}
    (example, *_) = outcome.records[-1].examples["near copy"]
    assert example == {"id": "41", "text": corpus()[41][:200]}


@pytest.mark.parametrize("tasks", [1, 2, 7, 46, 60])
def test_the_number_of_tasks_changes_nothing(tasks: int, tmp_path: Path) -> None:
    texts = corpus()
    random.Random(5).shuffle(texts)  # so that a copy may come before its model
    one = deduplicated(texts, tmp_path / "one")
    many = deduplicated(texts, tmp_path / "many", tasks)
    assert (many.kept, many.reasons) == (one.kept, one.reasons)
    assert len(one.kept) == 40


def test_the_first_of_a_chain_of_copies_stays(tmp_path: Path) -> None:
    draw = random.Random(1)
    chain = [chinese(draw, 200)]
    for _ in range(24):
        chain.append(edited(draw, chain[-1], 1))
    assert jaccard(chain[0], chain[-1]) < 0.5
    order = list(range(len(chain)))
    for _ in range(5):  # datatrove's own choice, the root by size, would differ between these
        draw.shuffle(order)
        outcome = deduplicated([chain[place] for place in order], tmp_path, tasks=3)
        assert outcome.kept == ["0"]


@WRITERS
def test_pairs_are_found_as_often_as_their_exact_similarity_says(write: Write, tmp_path: Path) -> None:
    """Reference: Jaccard similarity in plain Python, and the probability that banding gives it."""
    draw = random.Random(2)
    pairs = []
    for number in range(240):
        original = write(draw, 120)
        pairs.append((original, edited(draw, original, number % 24)))
    texts = [text for pair in pairs for text in pair]
    kept = set(deduplicated(texts, tmp_path, tasks=3).kept)
    assert kept.issuperset(str(2 * number) for number in range(len(pairs)))
    found = [str(2 * number + 1) not in kept for number in range(len(pairs))]
    exact = [jaccard(*pair) for pair in pairs]
    chances = [1 - (1 - similarity**8) ** 14 for similarity in exact]
    spread = sum(chance * (1 - chance) for chance in chances) ** 0.5
    assert abs(sum(found) - sum(chances)) < 4 * spread
    assert all(hit for hit, similarity in zip(found, exact, strict=True) if similarity > 0.92)
    assert not any(hit for hit, similarity in zip(found, exact, strict=True) if similarity < 0.3)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_classic_of_the_quickstart_data_is_kept(language: str, tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((QUICKSTART / language).glob("*.txt"))]
    if not texts:
        pytest.skip("the quickstart data is not here: onn fetch quickstart")
    draw = random.Random(3)
    copies = ["".join(draw.sample(text.splitlines(keepends=True), len(text.splitlines()))) for text in texts]
    outcome = deduplicated(texts + copies[:5], tmp_path, tasks=5)
    assert outcome.kept[: len(texts)] == [str(number) for number in range(len(texts))]


def test_case_width_and_punctuation_make_no_difference(tmp_path: Path) -> None:
    draw = random.Random(4)
    one, other = english(draw, 60), chinese(draw, 80)
    variants = [one, one.upper().replace(",", " -- "), other, other.replace("，", ", ").replace("。", "！")]
    assert deduplicated(variants, tmp_path).kept == ["0", "2"]


def test_numbers_make_a_difference(tmp_path: Path) -> None:
    sums = [
        f"what is {a} plus {b} the sum is {a + b} of course" for a in range(10, 15) for b in range(20, 23)
    ]
    assert len(deduplicated(sums, tmp_path).kept) == len(sums)


def test_texts_too_short_for_an_ngram_are_compared_exactly(tmp_path: Path) -> None:
    outcome = deduplicated(["谢谢你", "谢谢您", "谢谢你", "", "Yes.", "Yes!", "Yes."], tmp_path, tasks=2)
    assert outcome.kept == ["0", "1", "3", "4", "5"]
    assert outcome.reasons == {"exact copy": 2}


def test_documents_with_media_are_copies_only_if_everything_is_equal(tmp_path: Path) -> None:
    caption = english(random.Random(6), 40)

    def picture(content: bytes, name: str = "") -> Item:
        return Item("image", media=content, name=name)

    documents: list[Document] = []
    said = Item("text", text=caption)
    for items in (
        (picture(b"cat", "a.png"), said),
        (picture(b"dog"), said),
        (picture(b"cat", "copy of a.png"), said),  # 2: of 0; a name is no content
        (said, picture(b"cat")),
        (picture(b"cat"), Item("text", text=caption, supervised=False)),
        (Item("audio", media=b"cat"), said),
        (Item("series", value=[1, 2.5]), said),
        (Item("series", value=[1, 3.5]), said),
        (Item("series", value=[1, 2.5]), said),  # 8: of 6
        (said,),
        (Item("text", text=caption[:20]), Item("text", text=caption[20:])),  # 10: near 9
    ):
        documents.append(pack(items, str(len(documents)), "web"))
    outcome = deduplicated(documents, tmp_path, tasks=2)
    assert outcome.kept == ["0", "1", "3", "4", "5", "6", "7", "9"]
    assert outcome.reasons == {"exact copy": 2, "near copy": 1}


def test_near_copies_can_be_left_alone(tmp_path: Path) -> None:
    outcome = deduplicated(corpus(), tmp_path, tasks=2, near=False)
    assert outcome.reasons == {"exact copy": 3}
    assert len(outcome.kept) == 43
    assert [stage.tasks for stage in Deduplication(near=False).stages(tmp_path, 2)] == [1, 1]


@pytest.mark.parametrize("tasks", [1, 3])
def test_an_empty_corpus_has_no_copies(tasks: int, tmp_path: Path) -> None:
    outcome = deduplicated([], tmp_path, tasks)
    assert outcome.kept == [] and not outcome.reasons


def test_a_task_that_was_interrupted_overwrites_its_files_with_the_same_bytes(tmp_path: Path) -> None:
    settings, documents = Deduplication(), numbered(corpus())
    sign(settings, tmp_path / "clean", documents)
    (step,) = settings.signature_steps(tmp_path / "broken")
    passing = step.run(iter(documents), 0, 1)
    for _ in range(10):
        next(passing)
    passing.close()
    for path in (tmp_path / "broken").rglob("*"):
        if path.is_file():
            path.write_bytes(b"half a record")
    sign(settings, tmp_path / "broken", documents)
    assert files(tmp_path / "broken") == files(tmp_path / "clean")
    sign(settings, tmp_path / "broken", documents)
    assert files(tmp_path / "broken") == files(tmp_path / "clean")


def test_stages_run_again_write_the_same_bytes(tmp_path: Path) -> None:
    settings, parts = Deduplication(), cut(numbered(corpus()), 3)
    for task, part in enumerate(parts):
        sign(settings, tmp_path, part, task)
    find(settings, tmp_path, 3)
    before = files(tmp_path)
    find(settings, tmp_path, 3)
    assert files(tmp_path) == before
    assert drop(settings, tmp_path, parts).kept == drop(settings, tmp_path, parts).kept


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    parts = cut(numbered(corpus()), 3)
    written = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        settings = Deduplication()
        for task, part in enumerate(parts):
            sign(settings, folder, part, task)
        for stage in settings.stages(folder, len(parts)):
            LocalPipelineExecutor(
                stage.steps,
                tasks=stage.tasks,
                workers=workers,
                logging_dir=str(tmp_path / f"{workers}{stage.name}"),
            ).run()
        written.append(files(folder))
    assert written[0] == written[1]
    assert drop(settings, folder, parts).reasons == {"exact copy": 3, "near copy": 3}


def test_tasks_of_a_stage_follow_the_corpus(tmp_path: Path) -> None:
    def tasks(corpus_tasks: int) -> list[int]:
        return [stage.tasks for stage in Deduplication().stages(tmp_path, corpus_tasks)]

    assert [tasks(number) for number in (1, 64, 65, 640)] == [[15, 1], [15, 1], [30, 1], [150, 1]]


MANY_FILES = """
import resource, sys
from pathlib import Path
from dedup_corpora import deduplicated
from loguru import logger
logger.remove()
folder, texts = Path(sys.argv[1]), [f"line {number % 150}" for number in range(300)]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
print(len(deduplicated(texts, folder / "soft", tasks=300, near=False).kept))
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
deduplicated(texts, folder / "hard", tasks=300, near=False)
"""


def test_more_tasks_than_open_files_are_allowed_raise_the_limit_or_say_so(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MANY_FILES, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, env=environment
    )
    assert result.stdout.split() == ["150"]
    assert "must open 364 files at once, the system allows 150: raise the limit" in result.stderr


def test_stages_that_did_not_run_are_missed(tmp_path: Path) -> None:
    settings, documents = Deduplication(), numbered(["one text", "another text"])
    with pytest.raises(FileNotFoundError, match="run the stages of the deduplication first"):
        drop(settings, tmp_path, [documents])
    sign(settings, tmp_path, documents)
    clusters = settings.stages(tmp_path, 1)[1]
    with pytest.raises(RuntimeError, match="holds 0 files of pairs, 15 are needed"):
        clusters.steps[0].run(None, 0, 1)


def test_documents_of_another_run_are_refused(tmp_path: Path) -> None:
    settings, documents = Deduplication(), numbered(["one text", "another text", "one text"])
    sign(settings, tmp_path, documents)
    find(settings, tmp_path, 1)
    with pytest.raises(RuntimeError, match="task 0 has 2 documents, deduplication saw document 2 in it"):
        drop(settings, tmp_path, [documents[:2]])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="ngram is 0"):
        Deduplication(ngram=0)


@WRITERS
def test_three_megabytes_a_second_are_signed(write: Write, tmp_path: Path) -> None:
    draw = random.Random(7)
    for length in (300, 10_000):
        documents = numbered([write(draw, length) for _ in range(120_000 // length)])
        sign(Deduplication(), tmp_path, documents)  # compiles
        seconds = []
        for _ in range(10):  # the best of them: other processes take caches and clock away
            start = time.process_time()
            sign(Deduplication(), tmp_path, documents)
            seconds.append(time.process_time() - start)
        assert sum(len(each.text.encode()) for each in documents) / min(seconds) > 3e6
