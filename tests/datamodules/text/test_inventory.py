"""The script that builds the inventory: what it takes from where, and that it is what was shipped."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from datamodules.text import inventory
from datamodules.text.vocabulary import CharacterVocabulary

DEBIAN = Path("/usr/share/unicode")


@pytest.fixture
def unicode_data(tmp_path: Path) -> Path:
    """A folder like Debian's, with a line or two in each file."""
    rows = {
        "OtherMappings": "U+20164\tkTGH\t2013:6519\nU+4DB5\tkBigFive\tC945\nU+20000\tkCCCII\t216F36\n",
        "IRGSources": "U+4E04\tkIICore\tAG\n",
        "Readings": "U+3400\tkTang\tkhiou\n",
        "DictionaryIndices": "U+3401\tkGSR\t0001a\n",
    }
    for name, lines in rows.items():
        (tmp_path / f"Unihan_{name}.txt.bz2").write_bytes(
            bz2.compress(f"# comment\n{lines}\n# EOF\n".encode())
        )
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "emoji-test.txt").write_text(
        "# a group\n1FAE8 200D 2B1B ; fully-qualified # 🫨\n", "utf-8"
    )
    return tmp_path


def test_every_source_is_taken(unicode_data: Path) -> None:
    vocabulary = inventory.build_inventory(unicode_data)
    assert all(
        character in vocabulary
        for character in "\t\nA é Ω Я か 。 ① Ａ 啊 \U00020164 \u4db5丄㐀㐁 🫨⬛\u200d €"
    )
    assert "\U00020000" not in vocabulary  # in a field that is not named
    assert "\0" not in vocabulary
    assert len(vocabulary.characters) < inventory.NUM_CHARACTERS


def test_what_must_be_in_comes_before_what_fills(unicode_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = len(inventory.build_inventory(unicode_data).characters)
    monkeypatch.setattr(inventory, "NUM_CHARACTERS", everything - 1)
    assert "\u4db5" not in inventory.build_inventory(unicode_data)  # of the last field
    monkeypatch.setattr(inventory, "NUM_CHARACTERS", everything - 10)
    with pytest.raises(ValueError, match="raise NUM_CHARACTERS"):
        inventory.build_inventory(unicode_data)


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inventory.build_inventory(tmp_path)


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's package unicode-data 15.0")
def test_the_shipped_inventory_is_what_the_script_builds() -> None:
    assert inventory.build_inventory(DEBIAN).tokens == CharacterVocabulary.builtin().tokens
