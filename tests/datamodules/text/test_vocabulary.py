"""The inventory: lossless, the same in Hugging Face's libraries, honest about bad input."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datamodules.text.vocabulary as vocabulary_module
from datamodules.text.vocabulary import BYTE_TOKENS, SPECIAL_TOKENS, CharacterVocabulary

FILE = Path(vocabulary_module.__file__).with_name("tokenizer.json")
any_text = st.text(max_size=60)  # every code point that encodes to UTF-8, of all planes
awkward = st.text(
    alphabet="\0\t\n\r\v\f\x1c\x1e\x85\u2028\ufeff a'<>é中\u0301\u200d🙂𠮷\U0010ffff", max_size=40
)


@pytest.fixture(scope="module")
def builtin() -> CharacterVocabulary:
    return CharacterVocabulary.builtin()


@given(text=any_text | awkward)
def test_what_was_encoded_is_decoded_to_the_same_text(text: str) -> None:
    vocabulary = CharacterVocabulary.builtin()
    assert vocabulary.decode(vocabulary.encode(text)) == text


@settings(max_examples=60)
@given(text=any_text | awkward)
def test_hugging_face_tokenizers_gives_the_same_ids(text: str) -> None:
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(FILE))
    ids = CharacterVocabulary.builtin().encode(text).tolist()
    assert reference.encode(text).ids == ids
    assert reference.decode(ids) == text


def test_transformers_gives_the_same_ids() -> None:
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(FILE))
    for text in ("人工智能 and <eos>", "a\tb\r\n\0\x85", "𠮷🙂\U00012345 한글", ""):
        assert reference(text)["input_ids"] == CharacterVocabulary.builtin().encode(text).tolist()


def test_text_that_spells_a_special_token_is_characters(builtin: CharacterVocabulary) -> None:
    for token in (*SPECIAL_TOKENS, *BYTE_TOKENS[:3]):
        ids = builtin.encode(token)
        assert len(ids) == len(token)
        assert builtin.decode(ids) == token


def test_the_inventory_holds_what_it_promises(builtin: CharacterVocabulary) -> None:
    cells = [bytes([row, column]) for row in range(0xA1, 0xFF) for column in range(0xA1, 0xFF)]
    gb2312 = {cell.decode("gb2312", errors="ignore") for cell in cells} - {""}
    (folder,) = find_spec("jieba").submodule_search_locations
    lines = (Path(folder) / "dict.txt").read_text("utf-8").split("\n")
    jieba = {character for line in lines for character in line.split(" ")[0]}
    ascii_text = {chr(code) for code in range(0x20, 0x7F)} | set("\t\n\r")
    for promised in (gb2312, jieba, ascii_text, set("ÀéßŁ Ωλ Жя あカー 「」…— €№℃ ＡＢ１ 🙂😂❤👍🏽🇨🇳")):
        assert not {character for character in promised if character not in builtin}
    assert len(builtin.characters) == 20_480
    assert len(builtin) == 20_480 + 256 + len(SPECIAL_TOKENS)


def test_ids_stand_in_the_promised_order(builtin: CharacterVocabulary) -> None:
    assert builtin.tokens[: len(SPECIAL_TOKENS)] == SPECIAL_TOKENS
    assert builtin.byte_ids.tolist() == list(range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 256))
    assert builtin.characters == sorted(builtin.characters)


def test_bytes_of_every_id_add_up_to_the_text(builtin: CharacterVocabulary) -> None:
    text = "a é 中 🙂 \U00012345 \0"
    assert builtin.num_bytes[builtin.encode(text)].sum() == len(text.encode())
    assert not builtin.num_bytes[[builtin.pad_id, builtin.bos_id, builtin.eos_id]].any()


def test_special_tokens_vanish_and_broken_bytes_show(builtin: CharacterVocabulary) -> None:
    ids = [
        builtin.bos_id,
        *builtin.encode("a"),
        builtin.byte_ids[0xE4],
        *builtin.encode("中"),
        builtin.eos_id,
    ]
    assert builtin.decode(ids) == "a\ufffd中"


@pytest.mark.parametrize("bad", [-1, 20_752, 2**40])
def test_an_id_outside_the_vocabulary_is_named(builtin: CharacterVocabulary, bad: int) -> None:
    with pytest.raises(ValueError, match=f"id {bad} at position 1"):
        builtin.decode([5, bad])


def test_ids_that_are_no_integers_are_refused(builtin: CharacterVocabulary) -> None:
    with pytest.raises(ValueError, match="integers"):
        builtin.decode(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="one row"):
        builtin.decode(np.array([[1, 2]]))
    assert builtin.decode([]) == ""


def test_a_small_vocabulary_spells_the_rest_in_bytes() -> None:
    vocabulary = CharacterVocabulary.from_characters("ab中")
    ids = vocabulary.encode("a中文b")
    assert [vocabulary.tokens[index] for index in ids] == ["a", "中", "<0xE6>", "<0x96>", "<0x87>", "b"]
    again = CharacterVocabulary.from_json(vocabulary.to_json())
    assert again.tokens == vocabulary.tokens
    assert again.fingerprint == vocabulary.fingerprint != CharacterVocabulary.builtin().fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["model"].update(merges=["a b"]), "without merges"),
        (lambda document: document["model"].update(byte_fallback=False), "byte_fallback"),
        (lambda document: document.update(normalizer={"type": "NFKC"}), "normalizer"),
        (lambda document: document.update(added_tokens=[{"id": 1, "content": "<bos>"}]), "added_tokens"),
        (lambda document: document["model"]["vocab"].update(word=10**6), "without gaps"),
        (lambda document: document["model"]["vocab"].update(word=len(document["model"]["vocab"])), "'word'"),
        (
            lambda document: document["model"]["vocab"].update({"<0x00>": document["model"]["vocab"]["a"]}),
            "gaps",
        ),
        (lambda document: document.pop("model"), "tokenizer.json"),
    ],
)
def test_a_file_that_would_give_other_ids_is_refused(change, message: str) -> None:
    document = json.loads(CharacterVocabulary.from_characters("ab").to_json())
    change(document)
    with pytest.raises(ValueError, match=message) as raised:
        CharacterVocabulary.from_json(json.dumps(document).encode(), source="my.json")
    assert "my.json" in str(raised.value)


def test_a_vocabulary_without_its_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        CharacterVocabulary([*SPECIAL_TOKENS, "a"])
