"""The thin data modules: from a path to a trained step, in Python and in YAML."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from small_trainer import small_trainer

from datamodules import (
    AudioModality,
    AudioTextDataModule,
    ImageModality,
    ImageTextDataModule,
    JsonLines,
    OmniDataModule,
    PreparedSource,
    TextDataModule,
    TextFiles,
    TextModality,
)
from datamodules.prepared import ShardWriter, TokenLayout, write_manifest
from onn_lightning import OmniModule
from onn_lightning.cli.main import main
from onn_lightning.nn import TrunkConfig


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`books/*.txt`, `more.jsonl`, `captions.jsonl`, `speech.jsonl`; the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("books").mkdir()
    text, image, sound = [], [], []
    for number in range(6):
        Path(f"books/{number}.txt").write_text(f"第{number}回 of the story. " * 9, "utf-8")
        text.append([{"modality": "text", "text": f"line {number}"}])
        Image.new("L", (16, 16), 40 * number).save(f"{number}.png")
        image.append([{"modality": "image", "path": f"{number}.png"}, {"modality": "text", "text": "灰"}])
        soundfile.write(f"{number}.wav", np.sin(np.arange(4000) * 0.05 * (number + 1)), 16000)
        sound.append([{"modality": "audio", "path": f"{number}.wav"}, {"modality": "text", "text": "hum"}])
    for name, documents in (("more", text), ("captions", image), ("speech", sound)):
        lines = [json.dumps({"items": items}) + "\n" for items in documents]
        Path(f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def train(module: OmniDataModule, folder: Path) -> Trainer:
    """Two steps of a tiny model, and validation."""
    trunk = TrunkConfig(hidden_size=8, num_layers=1, num_heads=2)
    trainer = small_trainer(folder, 2, val_check_interval=2, check_val_every_n_epoch=None)
    trainer.fit(OmniModule(trunk, module.modalities), module)
    assert trainer.global_step == 2
    return trainer


SMALL: dict[str, Any] = {"row_length": 64, "rows_per_batch": 2, "buffer_size": 8}


def test_text_from_paths_trains(corpora: Path) -> None:
    text = TextModality(max_words=100, embedding_size=4)
    module = TextDataModule(["books", "more.jsonl"], validation="books/3.txt", text=text, **SMALL)
    assert module.modalities == [text]
    assert {name: type(source) for name, source in module.splits["train"].items()} == {
        "books": TextFiles,
        "more": JsonLines,
    }
    trainer = train(module, corpora)
    assert "val/3/bits_per_byte" in trainer.callback_metrics


def test_images_and_sounds_with_text_train(corpora: Path) -> None:
    text = TextModality(max_words=100, embedding_size=4)
    image, audio = ImageModality(patch_size=8), AudioModality(max_seconds=1)
    pictures = ImageTextDataModule("captions.jsonl", image, validation="captions.jsonl", text=text, **SMALL)
    assert set(pictures.modalities) == {text, image}
    assert "val/captions/text_loss" in train(pictures, corpora).callback_metrics
    sounds = AudioTextDataModule({"hum": JsonLines("speech.jsonl", weight=2.0)}, audio, text=text, **SMALL)
    assert sounds.mixture_weights == {"hum": 2.0}
    train(sounds, corpora)


def test_a_prepared_set_is_recognised_alone_and_in_a_folder(corpora: Path) -> None:
    text = TextModality(max_words=100, embedding_size=4)
    for name in ("one", "many/a", "many/b"):
        with ShardWriter(corpora / name / "shards", "00000", TokenLayout.of(text.tokenizer)) as writer:
            for number in range(4):
                encoding = text.tokenizer.encode(f"{name} {number}, prepared before")
                writer.add(f"{name}: {number}", [("text", encoding, True)])
        write_manifest(corpora / name, text.tokenizer, sources=[], records=[], config={})
    module = TextDataModule(["one", "many"], text=text, **SMALL)
    sources = module.splits["train"]
    assert [type(source) for source in sources.values()] == [PreparedSource, PreparedSource]
    assert [len(source) for source in sources.values()] == [4, 8]
    train(module, corpora)


def test_paths_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a/train', 'b/train'\], two have the same name"):
        TextDataModule(["a/train", "b/train"], text=TextModality(max_words=10))


YAML = """
model: {trunk: {hidden_size: 8, num_layers: 1, num_heads: 2}}
trainer: {max_steps: 1, accelerator: cpu, logger: false, enable_progress_bar: false, callbacks: []}
"""


@pytest.mark.parametrize(
    "data",
    [
        """
        class_path: datamodules.TextDataModule
        init_args:
          train: books
          text: {class_path: TextModality, init_args: {max_words: 99}}
          row_length: 32
        """,
        """
        class_path: datamodules.ImageTextDataModule
        init_args:
          train: captions.jsonl
          validation: [captions.jsonl]
          image: {class_path: ImageModality, init_args: {patch_size: 8}}
          max_pixels_per_batch: 5000
        """,
        """
        class_path: datamodules.AudioTextDataModule
        init_args:
          train:
            hum: {class_path: datamodules.JsonLines, init_args: {path: speech.jsonl}}
            log: {class_path: datamodules.GrowingJsonLines, init_args: {path: log.jsonl, weight: 0.1}}
          buffer_size: 8
        """,
        """
        class_path: datamodules.TextDataModule
        init_args:
          train:
            rows:
              class_path: datamodules.HuggingFaceSource
              init_args: {path: json, data_files: rows.jsonl, columns: [{name: title, optional: true}]}
        """,
    ],
)
def test_each_is_a_few_lines_of_yaml(
    corpora: Path, data: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the current folder
    Path("rows.jsonl").write_text("".join(json.dumps({"title": f"row {n}"}) + "\n" for n in range(5)))
    config = yaml.safe_load(YAML) | {"data": yaml.safe_load(data)}
    Path("tiny.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    assert main(["fit", "--config", "tiny.yaml"]) == 0, capsys.readouterr().err
