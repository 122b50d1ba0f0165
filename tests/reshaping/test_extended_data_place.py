"""A run goes on in its data with more words and characters, even where documents become shorter by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import OmniDataModule, TextFiles, TextModality
from datamodules.text.vocabulary import CharacterVocabulary
from onn_lightning import OmniModule
from onn_lightning.checkpoint import description
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping import extend_tables, reshape_checkpoint

TRUNK = TrunkConfig(16, 1, 2, intermediate_size=16)


def fit(folder: Path, text: TextModality, steps: int, start: Path | None = None) -> OmniModule:
    data = OmniDataModule(
        [text],
        train={"text": TextFiles(str(folder / "texts"))},
        row_length=32,
        rows_per_batch=2,
        num_workers=0,
    )
    module = OmniModule(TRUNK, [text])
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=start, weights_only=True)
    trainer.save_checkpoint(folder / "run.ckpt")
    return module


def places_of(checkpoint: dict[str, Any]) -> list[Any]:
    (loader,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    places: list[Any] = loader["places"]
    return places


@pytest.mark.parametrize("grown", ["words", "characters"])
def test_a_run_goes_on_in_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: str) -> None:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}.txt").write_text("人工智能 " * 60)  # spelled in 12 bytes and a space
    (tmp_path / "words.txt").write_text("a 1\n人 1\n")
    (tmp_path / "more.txt").write_text("a 1\n人 1\n工 2\nb 4\n")
    for name, characters in (("few", "人ab "), ("many", "人ab 工智能")):
        (tmp_path / f"{name}.json").write_bytes(CharacterVocabulary.from_characters(characters).to_json())

    previous = TextModality(str(tmp_path / "few.json"), str(tmp_path / "words.txt"))
    fit(tmp_path, previous, 3)
    checkpoint = description.read(tmp_path / "run.ckpt")
    changes = {"words": "more.txt"} if grown == "words" else {"vocabulary": "many.json"}
    now = previous.with_tables(**{name: str(tmp_path / file) for name, file in changes.items()})
    new = reshape_checkpoint(checkpoint, extend_tables(TRUNK, {"text": now}), [previous])
    old_place, place = places_of(checkpoint), places_of(new)
    assert (place == old_place) == (grown == "words")  # exact, where no document is cut otherwise
    torch.save(new, tmp_path / "grown.ckpt")
    assert fit(tmp_path, now, 8, tmp_path / "grown.ckpt").global_step == 8

    if grown == "characters":  # the pieces that were waiting are not all there any more
        place[:] = old_place
        torch.save(new, tmp_path / "grown.ckpt")
        with pytest.raises(ValueError, match="no longer gives what it gave"):
            fit(tmp_path, now, 8, tmp_path / "grown.ckpt")
