"""The script that builds the inventory: what it takes from where, and that it is what was shipped."""

from __future__ import annotations

import bz2
import gettext
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datamodules.text import DualTokenizer, inventory
from datamodules.text.corpus import CorpusCounter
from datamodules.text.vocabulary import CharacterVocabulary

DEBIAN = Path("/usr/share/unicode")
needs_unicode_data = pytest.mark.skipif(
    not DEBIAN.exists(), reason="needs Debian's package unicode-data 15.0"
)


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


@needs_unicode_data
def test_the_shipped_inventory_is_what_the_script_builds() -> None:
    assert inventory.build_inventory(DEBIAN).tokens == CharacterVocabulary.builtin().tokens


@needs_unicode_data
def test_every_general_standard_character_and_every_emoji_is_in_the_inventory() -> None:
    with bz2.open(DEBIAN / "Unihan_OtherMappings.txt.bz2", "rt", encoding="utf-8") as lines:
        table = [chr(int(line.split("\t")[0][2:], 16)) for line in lines if "\tkTGH\t" in line]
    assert len(table) == 8105
    rows = (DEBIAN / "emoji" / "emoji-test.txt").read_text("utf-8").split("\n")
    emoji = [chr(int(code, 16)) for row in rows for code in row.split("#")[0].split(";")[0].split()]
    vocabulary = CharacterVocabulary.builtin()
    assert len(emoji) > 3_000 and all(character in vocabulary for character in table + emoji)


def test_han_characters_fill_it_also_beyond_the_basic_plane() -> None:
    characters = CharacterVocabulary.builtin().characters
    han = [c for c in characters if "\u3400" <= c <= "\u9fff" or "\U00020000" <= c <= "\U0003ffff"]
    assert len(han) > 14_000
    assert sum(c > "\uffff" for c in characters) > 1_200


def technical_chinese() -> Iterator[str]:
    """Messages of the programs of this machine, translated."""
    for file in sorted(Path("/usr/share/locale/zh_CN/LC_MESSAGES").glob("*.mo")):
        with file.open("rb") as content:
            translations = gettext.GNUTranslations(content)
        yield "\n".join(text for text in vars(translations)["_catalog"].values() if isinstance(text, str))


def classical_chinese() -> Iterator[str]:
    """The Three Kingdoms (`onn fetch quickstart`)."""
    for file in sorted(Path("data/quickstart").glob("*/zh/*.txt")):
        yield file.read_text("utf-8")


@pytest.mark.parametrize(("texts", "most"), [(classical_chinese, 7e-4), (technical_chinese, 1e-5)])
def test_few_characters_of_real_text_fall_back_to_bytes(
    tokenizer: DualTokenizer, texts: Callable[[], Iterator[str]], most: float
) -> None:
    counter = CorpusCounter(tokenizer)
    for text in texts():
        counter.add(text)
    if counter.total.characters < 100_000:
        pytest.skip(f"little text on this machine: {texts.__doc__}")
    assert counter.total.bytes_fallback <= most, counter.missing_characters[:20]
