"""`onn inspect`: batches of real data through the real loader, read back and compared with the documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from cli_standins import Outcome
from PIL import Image

from datamodules import AudioModality, ImageModality, TextModality
from onn_lightning.batch import Segment
from onn_lightning.inspection.fonts import find_lettering
from onn_lightning.inspection.page import columns_of, fold, marked_text, words_of
from onn_lightning.inspection.pieces import Run, pieces_of
from onn_lightning.inspection.sheet import draw_sheet
from onn_lightning.modality import Preview

Onn = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "new_modality"
LONG = "The quick brown fox jumps over the lazy dog. " * 5  # longer than a row


def write_media(folder: Path) -> None:
    """Two pictures, a sound, and documents that use them in all ways."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    Image.new("RGB", (8, 8), (200, 30, 40)).save(folder / "red.png")
    time = np.arange(8000) / 16_000
    soundfile.write(folder / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 16_000)
    (folder / "broken.png").write_bytes(b"not a picture")
    text, image, audio = ({"modality": name} for name in ("text", "image", "audio"))
    documents = [
        [{**image, "path": "noise.png"}, {**text, "text": "人工智能的历史"}],
        [{**text, "text": "Say it: ", "supervised": False}, {**text, "text": "hello"}],
        [{**image, "path": "red.png"}, {**image, "path": "red.png"}, {**text, "text": "red\ttwice"}],
        [{**audio, "path": "tone.wav"}, {**text, "text": "a"}],
        [{**image, "path": "broken.png"}, {**text, "text": "never seen"}],
        [{**text, "text": LONG}],
    ]
    lines = [json.dumps({"items": items}) + "\n" for items in documents]
    (folder / "documents.jsonl").write_text("".join(lines))


def write_config(folder: Path, **settings: Any) -> Path:
    source = {"class_path": "datamodules.JsonLines", "init_args": {"path": str(folder / "documents.jsonl")}}
    config = {
        "seed_everything": 0,
        "data": {
            "class_path": "datamodules.OmniDataModule",
            "init_args": {
                "modalities": [
                    {"class_path": "datamodules.TextModality", "init_args": {"embedding_size": 8}},
                    {"class_path": "datamodules.ImageModality", "init_args": {"patch_size": 8}},
                    {"class_path": "datamodules.AudioModality"},
                ],
                "train": {"all": source},
                "test": {"all": source},
                "row_length": 64,
                "rows_per_batch": 4,
                **settings,
            },
        },
        "model": {"class_path": "nowhere.NoModel"},  # not built, so it need not exist
        "trainer": {"max_steps": 1},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.dump(config))
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process of its own printed for the test split, with a loader worker."""
    folder = tmp_path_factory.mktemp("inspected")
    write_media(folder)
    config = write_config(folder, num_workers=1)
    options = ["--split", "test", "--batches", "5", "--json", "--to", str(folder / "look")]
    done = subprocess.run(
        [sys.executable, "-m", "onn_lightning", "inspect", "--config", str(config), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def pieces(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [piece for batch in found["batches"] for piece in batch["pieces"]]


def piece_with(found: dict[str, Any], word: str) -> dict[str, Any]:
    (piece,) = [piece for piece in pieces(found) if any(word in run.get("text", "") for run in piece["runs"])]
    return piece


def test_every_token_of_the_documents_is_found_and_counted(found: dict[str, Any]) -> None:
    tones = len(AudioModality().encode((np.ones(8000, np.float32) * np.arange(8000), 16_000)))
    parts = -(-(len(LONG) + 2 - 64) // 63) + 1  # pieces overlap by one token
    long = len(LONG) + 2 + parts - 1
    text = (7 + 1) + (1 + 8 + 5 + 1) + (9 + 1) + (1 + 1) + long
    totals = found["totals"]
    assert {name: counts["tokens"] for name, counts in totals["modalities"].items()} == {
        "audio": tones,
        "image": 6 + 1 + 1,
        "text": text,
    }
    assert totals["tokens"] == text + tones + 8
    assert totals["places"] == len(found["batches"]) * 4 * 64
    assert totals["padding"] == pytest.approx(1 - totals["tokens"] / totals["places"])
    images = totals["modalities"]["image"]
    assert (images["media"], images["pixels"], images["targets"]) == (3, 8 * 64, 0)
    assert totals["modalities"]["audio"]["media"] == 1
    # not predicted: what is context, and the first token of each piece
    assert totals["modalities"]["text"]["targets"] == text - (1 + 8) - parts
    assert totals["bad_samples"] == {"test/all": 1}
    assert totals["sources"] == {"all": 1.0}
    assert sum(sum(run["tokens"] for run in piece["runs"]) for piece in pieces(found)) == totals["tokens"]


def test_words_and_special_tokens_are_those_of_the_tokenizer(found: dict[str, Any]) -> None:
    image, text = piece_with(found, "历史")["runs"]
    assert (image["modality"], image["caption"]) == ("image", "24 x 16 pixels")
    assert text["words"] == [*TextModality().tokenizer.segment("人工智能的历史"), "⟨eos⟩"]
    assert (text["predicted"], text["tokens"]) == (8, 8)


def test_two_pictures_in_a_row_are_two_runs(found: dict[str, Any]) -> None:
    runs = piece_with(found, "twice")["runs"]
    assert [(run["modality"], run["tokens"]) for run in runs] == [("image", 1), ("image", 1), ("text", 10)]


def test_pieces_say_whether_their_document_goes_on(found: dict[str, Any]) -> None:
    parts = [piece for piece in pieces(found) if piece["continues"] or piece["goes_on"]]
    states = sorted((part["continues"], part["goes_on"]) for part in parts)
    assert states == [(False, True), (True, False), (True, True), (True, True)]
    (first,) = [part for part in parts if not part["continues"]]
    (last,) = [part for part in parts if not part["goes_on"]]
    assert first["runs"][0]["text"] == f"⟨bos⟩{LONG[:63]}"
    assert last["runs"][0]["text"].endswith(f"{LONG[-20:]}⟨eos⟩")
    assert (found["totals"]["continued"], found["totals"]["unfinished"]) == (3, 3)


def test_the_sheet_shows_the_very_pixels_that_the_tower_gets(found: dict[str, Any]) -> None:
    page = np.asarray(Image.open(found["batches"][0]["sheet"]))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    enlarged = pixels.repeat(6, axis=0).repeat(6, axis=1)  # to at least 96 pixels
    corners = np.argwhere((page == pixels[0, 0]).all(axis=2))
    shown = [page[y : y + 96, x : x + 144] for y, x in corners]
    assert any(part.shape == enlarged.shape and (part == enlarged).all() for part in shown)


def test_the_page_marks_words_context_and_parts(onn: Onn, tmp_path: Path) -> None:
    write_media(tmp_path)
    outcome = onn("inspect", "--config", str(write_config(tmp_path)), "--split", "test", "--batches", "1")
    assert outcome.code == 0, outcome.err
    assert "人工智能|的|历史⟨eos⟩" in outcome.out
    assert "⟪⟨bos⟩Say it: ⟫hello⟨eos⟩" in outcome.out
    assert "red⇥twice⟨eos⟩" in outcome.out
    assert "tokens, read but not predicted: 24 x 16 pixels" in outcome.out
    assert "continues a document, goes on in another piece" in outcome.out
    assert "bad samples skipped in test/all: 1" in outcome.out
    sheet = Path("runs/tiny/inspect/test-all-1.png")
    assert str(sheet) in outcome.out
    Image.open(sheet).verify()


def test_training_batches_come_with_the_shares_of_their_sources(onn: Onn, tmp_path: Path) -> None:
    write_media(tmp_path)
    config = write_config(tmp_path)
    override = "--data.init_args.row_length=32"
    outcome = onn("inspect", "--config", str(config), override, "--batches", "2", "--json", "--to", "look")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["totals"]["places"] == 2 * 4 * 32
    assert found["totals"]["sources"] == {"all": 1.0}
    assert [batch["sheet"] for batch in found["batches"]] == ["look/train-1.png", "look/train-2.png"]


def test_a_modality_without_a_preview_is_summed_up(
    onn: Onn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    readings = [1.0, -1.0] * 16
    items = [{"modality": "sensor", "value": readings}, {"modality": "text", "text": "driven"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"items": items}) + "\n")
    path = str(tmp_path / "train.jsonl")
    sources = [f"--data.init_args.{split}.springs.init_args.path={path}" for split in ("train", "validation")]
    outcome = onn("inspect", "--config", str(EXAMPLE / "sensor.yaml"), *sources, "--batches", "1")
    assert outcome.code == 0, outcome.err
    assert "4 tokens: 4 x 8 float32, mean 0, standard deviation 1, -1 to 1" in outcome.out
    assert "driven⟨eos⟩" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ((), 2, "no --config given (bundled: "),
        (("--config", "quickstrat"), 2, "did you mean 'quickstart.yaml'?"),
        (("--config", "tiny.yaml", "--bathces", "3"), 2, "(did you mean '--batches'?)"),
        (("--config", "tiny.yaml", "--batches", "0"), 2, "expected a whole number from 1 on, got '0'"),
        (("--config", "tiny.yaml", "--split", "trian"), 2, "invalid choice: 'trian'"),
        (("--config", "tiny.yaml", "--data.init_args.row_lenth=9"), 2, "(did you mean 'row_length'?)"),
        (("--config", "tiny.yaml", "--data.init_args.row_length=1"), 1, "`row_length` must be at least 2"),
        (("--config", "tiny.yaml", "--split", "predict"), 1, "no source under `predict`; it has train, test"),
        (("--config", "tiny.yaml", "--to", "tiny.yaml/x"), 1, "tiny.yaml/x: Not a directory"),
        (("--config", "tiny.yaml"), 1, "documents.jsonl' does not exist"),
    ],
)
def test_a_mistake_is_one_line(
    onn: Onn, tmp_path: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    write_config(tmp_path)
    outcome = onn("inspect", *arguments)
    assert outcome.code == code
    assert line in outcome.error_line


def test_a_mistake_in_the_config_is_named_with_its_line(onn: Onn, tmp_path: Path) -> None:
    config = write_config(tmp_path, rows_per_bacth=3)
    outcome = onn("inspect", "--config", str(config))
    assert outcome.code == 2
    assert "tiny.yaml:" in outcome.error_line and "(did you mean 'rows_per_batch'?)" in outcome.error_line


def test_help_needs_no_torch() -> None:
    code = "import sys; from onn_lightning.cli.main import main; main(['inspect', '--help']);"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], cwd=ROOT, check=True)


def test_marks_stand_where_words_touch_and_around_context() -> None:
    text = ("⟨bos⟩", "a", "b", " ", "c", "", "é", ",", "d")  # the last but two is spelled in bytes
    starts = (True, True, False, True, True, True, False, True, True)
    supervised = torch.tensor([False, True, True, False, False, True, True, True, True])
    run = Run(Segment("text", torch.zeros(9, 3)), supervised)
    preview = Preview(text, starts)
    assert marked_text(run, preview, opens_piece=True) == "⟨bos⟩ab⟪ c⟫é,d"
    assert marked_text(run, preview) == "⟪⟨bos⟩⟫ab⟪ c⟫é,d"
    everywhere = Run(run.segment, torch.ones(9, dtype=torch.bool))
    assert marked_text(everywhere, preview) == "⟨bos⟩ab c|é,d"
    assert marked_text(everywhere, preview, limit=3) == "⟨bos⟩ab … and 6 tokens more"
    assert words_of(preview) == ["⟨bos⟩", "ab", " ", "c", "é", ",", "d"]


def test_lines_are_folded_by_the_columns_they_take() -> None:
    assert fold("人工智能", 5) == ["人工", "智能"]
    assert fold("one two three", 9) == ["one two ", "three"]
    assert fold("", 5) == [""]
    assert columns_of("e\u0301智a") == 4


def test_without_a_chinese_font_captions_are_ascii(tmp_path: Path) -> None:
    lettering = find_lettering(14, folders=(str(tmp_path),))
    assert not lettering.has_chinese
    assert lettering.safe("zero 数字零\n") == "zero ????"
    assert lettering.cut("a" * 100, 60).endswith("...")
    assert lettering.width(lettering.cut("a" * 100, 60)) <= 60


def test_a_batch_of_nothing_but_padding_is_drawn_and_counted() -> None:
    from datamodules.packing import Collator, prototype_of

    image = ImageModality(patch_size=8)
    batch = Collator({"image": prototype_of(image.placeholder())}, ["image"], 16, 2)([])
    found = pieces_of(batch, {"image": image})
    assert found == []
    assert draw_sheet(found, 2, 16, "nothing").size[0] > 0
