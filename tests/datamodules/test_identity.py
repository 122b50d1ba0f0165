"""A place in the data is gone on from only over what it stands on; both values are named otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from numbered import Documents, Numbered
from PIL import Image

from datamodules.audio import AudioModality
from datamodules.image import ImageModality
from datamodules.omni import OmniDataModule
from datamodules.sources import JsonLines, Source
from datamodules.text import TextModality
from onn_lightning.modality import Modality


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    Image.new("L", (32, 32), 7).save(folder / "seven.png")
    items = [{"modality": "image", "path": "seven.png"}, {"modality": "text", "text": "七"}]
    (folder / "all.jsonl").write_text(json.dumps({"items": items}) + "\n")
    return folder / "all.jsonl"


def state_of(captions: Path, *modalities: Modality) -> tuple[OmniDataModule, dict[str, Any]]:
    module = OmniDataModule(list(modalities), {"all": JsonLines(captions)}, row_length=64, buffer_size=4)
    module.setup("fit")
    loader = module.train_dataloader()
    for _ in islice(loader, 2):
        pass
    return module, loader.state_dict()


def test_another_patch_size_is_refused_with_both(captions: Path) -> None:
    text = TextModality(max_words=50)
    _, state = state_of(captions, ImageModality(patch_size=16), text)
    other, _ = state_of(captions, ImageModality(patch_size=8), text)
    with pytest.raises(ValueError, match="saved with patch_size of modality 'image' = 16, now it is 8"):
        other.train_dataloader().load_state_dict(state)


def test_another_tokenizer_is_refused_with_both_fingerprints(captions: Path) -> None:
    image = ImageModality(patch_size=16)
    text, other_text = TextModality(max_words=50), TextModality(max_words=51)
    _, state = state_of(captions, image, text)
    other, _ = state_of(captions, image, other_text)
    prints = text.tokenizer.fingerprint, other_text.tokenizer.fingerprint
    with pytest.raises(ValueError, match="tokenizer of modality 'text' = {}, now it is {}".format(*prints)):
        other.train_dataloader().load_state_dict(state)
    same, _ = state_of(captions, image, TextModality(max_words=50, embedding_size=8))  # no token changes
    same.train_dataloader().load_state_dict(state)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"a": 9, "b": 5}, "saved with documents of source 'a' = 8, now it is 9"),
        ({"a": 8}, "saved with documents of source 'b' = 5, now it is absent"),
        ({"a": 8, "b": 5, "c": 1}, "saved with documents of source 'c' = absent, now it is 1"),
        ({"b": 5, "a": 8}, r"saved with the order of sources = \['a', 'b'\], now it is \['b', 'a'\]"),
    ],
)
def test_other_sources_are_refused(sources: Mapping[str, int], message: str) -> None:
    def module_of(sources: Mapping[str, int]) -> OmniDataModule:
        train: dict[str, Source] = {
            name: Documents([3] * count, number) for number, (name, count) in enumerate(sources.items())
        }
        module = OmniDataModule([Numbered()], train, row_length=8, buffer_size=4)
        module.setup("fit")
        return module

    state = module_of({"a": 8, "b": 5}).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=message):
        module_of(sources).train_dataloader().load_state_dict(state)


def test_a_fingerprint_is_plain_data_and_that_of_text_is_the_tokenizer_s() -> None:
    assert ImageModality(patch_size=8).fingerprint()["patch_size"] == 8
    assert AudioModality().fingerprint()["sample_rate"] == 16_000
    assert list(TextModality(max_words=50).fingerprint()) == ["tokenizer"]
    assert Numbered().fingerprint() == {}


class Picky(Documents):
    """Was made for other modalities."""

    def check(self, modalities: Mapping[str, Modality]) -> None:
        raise ValueError(f"made for 'smell', the run has {sorted(modalities)}")


def test_a_source_may_refuse_the_run_s_modalities_at_setup() -> None:
    with pytest.raises(ValueError, match=r"made for 'smell', the run has \['text'\]"):
        OmniDataModule([Numbered()], {"a": Picky([3])}).setup("fit")
