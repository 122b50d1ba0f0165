"""The last step of the pipeline: documents become shards, whatever was left there before."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from datatrove.data import Document

from datamodules.prepare.document import Item, pack
from datamodules.prepare.records import StepRecord
from datamodules.prepare.tokenize import EMPTY, SURROGATE, TOO_LONG_A_WORD, TokenizeStep
from datamodules.prepared import PreparedSource, Shard, TokenLayout, write_manifest
from datamodules.text import DualTokenizer
from datamodules.text.tokenizer import Encoding
from datamodules.text.vocabulary import CharacterVocabulary


def text(content: str, number: int = 0, supervised: bool = True) -> Document:
    return pack([Item("text", text=content, supervised=supervised)], f"web: pages.jsonl:{number}", "web")


def run(step: TokenizeStep, documents: Iterable[Document], task: int = 0) -> StepRecord:
    record = StepRecord(step.name)
    for _ in step.process(documents, record, task):
        pass
    return record


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_of_any_kind_become_what_training_reads(tmp_path: Path) -> None:
    items = [
        Item("text", text="下图是什么？", supervised=False),
        Item("image", media=b"\x89PNG...", name="a.png"),
        Item("text", text="a cat 🐈"),
        Item("audio", media=b"RIFF...", supervised=False),
        Item("series", value=[1, 2.5, {"unit": "°C"}]),
        Item("note", text="a plug-in's own text"),
    ]
    step = TokenizeStep(tmp_path / "set" / "shards")
    passed = list(step.process([pack(items, "web: pages.jsonl:7", "web")], StepRecord("tokenize"), 12))
    assert [document.id for document in passed] == ["web: pages.jsonl:7"]
    assert sorted(contents(tmp_path / "set" / "shards")) == ["00012-000.arrow", "00012-000.json"]
    write_manifest(tmp_path / "set", step.tokenizer(), sources=[], records=[], config={})
    (document,) = [PreparedSource(tmp_path / "set")[0]]
    assert [(name, supervised) for name, _, supervised in document] == [
        ("text", False),
        ("image", True),
        ("text", True),
        ("audio", False),
        ("series", True),
        ("note", True),
    ]
    question, image, answer, sound, series, note = (data for _, data, _ in document)
    assert (image, sound) == (b"\x89PNG...", b"RIFF...")
    assert (series, note) == ([1, 2.5, {"unit": "°C"}], "a plug-in's own text")
    tokenizer = DualTokenizer()
    for encoding, raw in ((question, "下图是什么？"), (answer, "a cat 🐈")):
        expected = tokenizer.encode(raw)
        assert isinstance(encoding, Encoding) and tokenizer.decode(encoding.char_ids) == raw
        assert encoding.word_ids.tolist() == expected.word_ids.tolist()
        assert encoding.previous_word_ids.tolist() == expected.previous_word_ids.tolist()


def test_what_cannot_be_stored_is_dropped_counted_and_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    documents = [
        text("first", 1),
        text("a \ud800 b", 2),
        text("", 3),
        pack([Item("text", text=""), Item("image", media=b"x")], "web: pages.jsonl:4", "web"),
        text("人 \udfff", 5),
        text("last", 6),
    ]
    record = run(TokenizeStep(tmp_path), documents)
    assert record.kept == 3 and record.dropped == {SURROGATE: 2, EMPTY: 1}
    assert record.examples[SURROGATE] == [
        {"id": "web: pages.jsonl:2", "text": "a \\ud800 b"},
        {"id": "web: pages.jsonl:5", "text": "人 \\udfff"},
    ]
    record.save(tmp_path / "records", order=0, task=0)  # can be written
    shard = Shard(tmp_path / "00000-000.arrow", TokenLayout.of(DualTokenizer()))
    assert [shard.id(number)[-1] for number in range(len(shard))] == ["1", "4", "6"]


def test_a_word_too_long_to_pack_drops_its_document_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "cache"))
    word = "".join(chr(0x4E00 + number) for number in range(300))
    (tmp_path / "vocabulary.json").write_bytes(CharacterVocabulary.from_characters(word + "，").to_json())
    (tmp_path / "words.txt").write_text(f"{word} 50\n一 9\n", "utf-8")
    step = TokenizeStep(
        tmp_path / "shards", str(tmp_path / "vocabulary.json"), str(tmp_path / "words.txt"), max_words=2
    )
    record = run(step, [text("丁，" + word, 1), text("丁，" + word[1:], 2)])
    assert (record.kept, dict(record.dropped)) == (1, {TOO_LONG_A_WORD: 1})


def test_a_task_that_runs_again_after_a_kill_leaves_what_an_uninterrupted_one_leaves(tmp_path: Path) -> None:
    documents = [text(f"第{number}回 " + "话说天下大势" * 200, number) for number in range(30)]

    def killed() -> Iterator[Document]:
        yield from documents[:25]
        raise KeyboardInterrupt

    whole, again = (TokenizeStep(tmp_path / name, max_shard_bytes=50_000) for name in ("whole", "again"))
    run(whole, documents, 3)
    expected = contents(whole.folder)
    assert len(expected) >= 2
    (again.folder).mkdir()
    for name in ("00003-000.arrow", "00003-017.arrow", "00003-017.json", ".00003-001.arrow.partial"):
        (again.folder / name).write_bytes(b"left by an earlier attempt")
    (again.folder / "00004-000.arrow").write_bytes(b"another task's")
    with pytest.raises(KeyboardInterrupt):
        run(again, killed(), 3)
    assert not [name for name in contents(again.folder) if name.endswith(".partial")]
    run(pickle.loads(pickle.dumps(again)), documents, 3)
    found = contents(again.folder)
    assert found.pop("00004-000.arrow") == b"another task's"
    assert found == expected
    run(again, documents[:1], 3)
    assert sorted(contents(again.folder)) == ["00003-000.arrow", "00003-000.json", "00004-000.arrow"]


@pytest.mark.parametrize("change", [lambda step: step, lambda step: pickle.loads(pickle.dumps(step))])
def test_the_step_is_small_plain_data_until_it_runs(
    tmp_path: Path, change: Callable[[TokenizeStep], TokenizeStep]
) -> None:
    step = change(TokenizeStep(tmp_path, user_words=str(tmp_path / "none.txt")))
    assert len(pickle.dumps(step)) < 5_000
    with pytest.raises(FileNotFoundError, match=r"user_words file '.*none\.txt' cannot be read"):
        run(step, [text("a")])


def test_a_task_without_documents_writes_no_shard(tmp_path: Path) -> None:
    assert run(TokenizeStep(tmp_path), []).kept == 0
    assert contents(tmp_path) == {}


def test_sources_prepared_together_can_be_read_one_by_one(tmp_path: Path) -> None:
    step = TokenizeStep(tmp_path / "shards")
    for task, source in enumerate(("web", "books", "web")):
        documents = [
            pack([Item("text", text=f"{source} {task} {n}")], f"{task}.{n}", source) for n in range(3)
        ]
        run(step, documents, task)
    run(step, [], task=3)  # all of it was filtered out
    write_manifest(tmp_path, step.tokenizer(), sources=["web", "books", "none"], records=[], config={})
    decode = step.tokenizer().decode
    texts = {
        name: [decode(document[0][1].char_ids) for document in map(source.__getitem__, range(len(source)))]
        for name, source in ((name, PreparedSource(tmp_path, source=name)) for name in ("web", "books", None))
    }
    assert texts["web"] == [f"web {task} {n}" for task in (0, 2) for n in range(3)]
    assert texts["books"] == [f"books 1 {n}" for n in range(3)]
    assert texts[None] == texts["web"][:3] + texts["books"] + texts["web"][3:]
    with pytest.raises(ValueError, match=r"no source 'wep', it has \['web', 'books', 'none'\]"):
        len(PreparedSource(tmp_path, source="wep"))
    with pytest.raises(ValueError, match="holds no document of source 'none'"):
        len(PreparedSource(tmp_path, source="none"))
