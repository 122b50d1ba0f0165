"""`onn grow` as a user runs it: a larger checkpoint of a run, and on with the command that it prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_standins import Outcome, Sensor
from lightning.pytorch import Trainer

from datamodules import TextModality
from onn_lightning import OmniModule
from onn_lightning.checkpoint import description
from onn_lightning.nn import TrunkConfig

ROOT = Path(__file__).parents[2]
WORDS = "to 9\nbe 8\nor 3\nnot 2\nthat 1\n人 3\n"
CONFIG = """
data:
  modalities: [{class_path: datamodules.TextModality, init_args: {words: words.txt, embedding_size: 8}}]
  train: {text: {class_path: datamodules.TextFiles, init_args: {path: texts}}}
  row_length: 32
  rows_per_batch: 2
model:
  trunk: {hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 16}
  optimizer: {class_path: onn_lightning.optim.MuonAdamW, init_args: {lr: 0.003}}
  warmup_steps: 2
trainer:
  max_steps: 4
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 2
  callbacks: [{class_path: onn_lightning.callbacks.RunReport, init_args: {answers: 0}}]
"""
Run = Callable[..., Outcome]


@pytest.fixture
def checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a small untrained network of text."""
    monkeypatch.setenv("ONN_CACHE_DIR", str(folder / "cache"))
    (folder / "words.txt").write_text(WORDS)
    torch.manual_seed(0)
    module = OmniModule(
        TrunkConfig(16, 2, 2, intermediate_size=16), [TextModality(words="words.txt", embedding_size=8)]
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("small.ckpt")
    return folder / "small.ckpt"


def grow(onn: Run, *arguments: str) -> Outcome:
    return onn("grow", "--checkpoint", "small.ckpt", "--output", "grown.ckpt", *arguments)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from onn_lightning.cli.main import main; assert main(['grow', '--help']) == 0; "
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_it_says_what_grew_by_how_much_and_how_to_go_on(onn: Run, checkpoint: Path) -> None:
    outcome = grow(onn, "--intermediate_size", "24", "1:32", "--add_blocks", "1", "--at", "0", "--seed", "1")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[:2] == [
        "feed-forward of block 0 from 16 to 24 neurons; feed-forward of block 1 from 16 to 32 neurons",
        "new block 0 of 3",
    ]
    assert lines[2].startswith("before: ") and lines[3].startswith("after:  ")
    assert all("parameters" in line and "MFLOPs a token" in line for line in lines[2:4])
    assert "largest difference over" in lines[4]
    assert "--model.init_args.trunk.intermediate_size '[24, 24, 32]'" in lines[-1]
    module = OmniModule.load_from_checkpoint("grown.ckpt")
    assert module.trunk.config.feed_forward_sizes == (24, 24, 32)
    assert len(module.history) == 2


def test_one_size_widens_the_smaller_feed_forwards_alone(onn: Run, checkpoint: Path) -> None:
    assert grow(onn, "--intermediate_size", "0:40").code == 0
    outcome = onn("grow", "--checkpoint", "grown.ckpt", "--output", "more.ckpt", "--intermediate_size", "24")
    assert outcome.code == 0
    assert OmniModule.load_from_checkpoint("more.ckpt").trunk.config.feed_forward_sizes == (40, 24)


def test_more_words_and_characters(onn: Run, checkpoint: Path, folder: Path) -> None:
    (folder / "more.txt").write_text(WORDS + "question 4\n")
    outcome = grow(onn, "--words", "more.txt")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("tokenizer of text from ")
    assert '"words": "more.txt"' in outcome.out.splitlines()[-1]
    (folder / "words.txt").unlink()  # the checkpoint carries its words
    module = OmniModule.load_from_checkpoint("grown.ckpt")
    assert module.modalities["text"].tokenizer.segmenter.num_known_words == 7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "nothing to grow"),
        (("--at", "1", "--intermediate_size", "32"), 2, "--at says where --add_blocks puts new blocks"),
        (("--intermediate_size", "wide"), 2, "'wide' is neither SIZE nor BLOCK:SIZE"),
        (("--intermediate_size", "8"), 2, r"the feed-forwards have \[16, 16\] neurons, none has fewer"),
        (("--intermediate_size", "1:32", "1:40"), 2, "names something twice"),
        (("--intermediate_size", "1:8"), 1, "cannot widen block 1 from 16 to 8"),
        (("--intermediate_size", "7:32"), 1, "the trunk has 2 blocks, numbered 0..1"),
        (("--add_blocks", "1", "--at", "9"), 1, "cannot add blocks at 9"),
        (("--words", "nowhere.txt"), 1, "nowhere.txt"),
        (("--words", "few.txt"), 1, "lacks 5 words of the one that the tables were trained with"),
        (("--max_words", "3"), 1, "lacks 3 words"),
        (("--wrods", "few.txt"), 2, "did you mean '--words'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    onn: Run, checkpoint: Path, folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (folder / "few.txt").write_text("人 3\n")
    outcome = grow(onn, *arguments)
    assert outcome.code == code
    assert re.search(message, outcome.error_line), outcome.error_line
    assert not (folder / "grown.ckpt").exists() and not list(folder.glob(".*"))


def test_an_output_that_is_there_is_replaced_only_by_force(onn: Run, checkpoint: Path, folder: Path) -> None:
    (folder / "grown.ckpt").write_text("mine")
    assert "--force" in grow(onn, "--intermediate_size", "32").error_line
    assert (folder / "grown.ckpt").read_text() == "mine"
    assert grow(onn, "--intermediate_size", "32", "--force").code == 0
    assert description.read("grown.ckpt")[description.KEY]["trunk"]["intermediate_size"] == 32
    assert (
        "there is no folder"
        in onn(
            "grow", "--checkpoint", "small.ckpt", "--output", "no/grown.ckpt", "--intermediate_size", "32"
        ).error_line
    )


def test_a_network_that_would_compute_something_else_is_not_written(
    onn: Run, checkpoint: Path, folder: Path
) -> None:
    damaged = torch.load(checkpoint, weights_only=True)
    weight = damaged["state_dict"]["trunk.blocks.0.moie.down.mu_weight"]
    weight.fill_(3e38)  # rescaling is no rounding here: values overflow
    torch.save(damaged, checkpoint)
    assert "nothing was written" in grow(onn, "--intermediate_size", "17").error_line
    assert not (folder / "grown.ckpt").exists()


def test_a_network_of_a_users_own_modality_is_compared_too(onn: Run, folder: Path) -> None:
    module = OmniModule(TrunkConfig(16, 1, 2, intermediate_size=16), [Sensor()])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("small.ckpt")
    assert "--trust" in grow(onn, "--intermediate_size", "32").error_line
    outcome = grow(onn, "--intermediate_size", "32", "--trust", "cli_standins")
    assert outcome.code == 0, outcome.err
    assert "over 64 tokens" in outcome.out
    refused = grow(onn, "--words", "more.txt", "--force", "--trust", "cli_standins")
    assert "--words: the checkpoint has no text" in refused.error_line


@pytest.mark.slow
def test_a_run_goes_on_with_the_printed_command(
    onn: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONN_CACHE_DIR", str(folder / "cache"))
    (folder / "words.txt").write_text(WORDS)
    (folder / "more.txt").write_text(WORDS + "question 4\n")
    (folder / "texts").mkdir()
    for number in range(4):
        (folder / "texts" / f"{number}.txt").write_text("To be, or not to be: that is the question.\n" * 20)
    (folder / "small.yaml").write_text(CONFIG)
    trained = onn("fit", "--config", "small.yaml")
    assert trained.code == 0, trained.err
    grown = onn(
        *("grow", "--checkpoint", "runs/small", "--output", "grown.ckpt", "--words", "more.txt"),
        *("--intermediate_size", "1:24", "--add_blocks", "1"),
    )
    assert grown.code == 0, grown.err
    command = shlex.split(grown.out.splitlines()[-1])
    assert command[:5] == ["onn", "fit", "--config", "runs/small/config.yaml", "--run"]
    went_on = onn(*command[1:], "--trainer.max_steps", "8")
    assert went_on.code == 0, went_on.err

    module = OmniModule.load_from_checkpoint("runs/small-grown/checkpoints/last.ckpt")
    assert module.trunk.config.feed_forward_sizes == (16, 24, 24)
    assert len(module.history) == 3 and {entry["step"] for entry in module.history} == {4}
    assert description.read("runs/small-grown/checkpoints/last.ckpt")["global_step"] == 8
