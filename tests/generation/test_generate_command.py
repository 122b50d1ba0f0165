"""`onn generate` as a user runs it, on a checkpoint that training wrote."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from lightning.pytorch import Trainer
from random_documents import picture, sound
from small_model import make_module

from onn_lightning import OmniModule
from onn_lightning.cli.generate import make_parser
from onn_lightning.cli.main import main
from onn_lightning.generation import generate
from onn_lightning.modality import Modality

REPOSITORY = Path(__file__).resolve().parents[2]


def save_checkpoint(module: OmniModule, path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


@pytest.fixture(scope="module")
def run_folder(modalities: list[Modality], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint, a picture and a sound."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    save_checkpoint(make_module(modalities), folder / "checkpoints" / "last.ckpt")
    picture(8, 8, 1).save(folder / "a.png")
    picture(11, 5, 2).save(folder / "b.png")
    samples, rate = sound(2000, 3)
    soundfile.write(folder / "a.wav", samples, rate)
    return folder


@pytest.fixture(scope="module")
def loaded(run_folder: Path) -> OmniModule:
    return OmniModule.load_from_checkpoint(run_folder / "checkpoints" / "last.ckpt")


def onn_generate(folder: Path, *arguments: str, short: bool = True) -> int:
    limit = ("--max_new_tokens", "6") if short else ()
    return main(["generate", "--checkpoint", str(folder), *limit, *arguments])


def test_inputs_are_read_in_the_order_in_which_they_are_given(run_folder, loaded, capsys):
    image, other, clip = (str(run_folder / name) for name in ("a.png", "b.png", "a.wav"))
    arguments = ["--image", image, "--prompt", "人", "--audio", clip, "--image", other, "--prompt", "ab"]
    assert onn_generate(run_folder, *arguments) == 0
    document = [("image", image), ("text", "人"), ("audio", clip), ("image", other), ("text", "ab")]
    expected = loaded.generate(document, max_new_tokens=6)
    assert capsys.readouterr().out == expected + "\n"
    assert expected != loaded.generate(document[::-1], max_new_tokens=6)


def test_a_checkpoint_file_does_as_well_as_its_run_folder(run_folder, capsys):
    assert onn_generate(run_folder / "checkpoints" / "last.ckpt", "--prompt", "ab") == 0
    from_file = capsys.readouterr().out
    assert onn_generate(run_folder, "--prompt", "ab") == 0
    assert capsys.readouterr().out == from_file


def test_the_newest_checkpoint_of_a_run_is_taken_and_a_torn_one_passed_over(run_folder, tmp_path, capsys):
    shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    whole = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "checkpoints" / "step=9.ckpt").write_bytes(whole[: len(whole) // 2])
    assert onn_generate(tmp_path, "--prompt", "ab") == 0


def test_sampling_options_reach_the_library(run_folder, loaded, capsys):
    arguments = ["--prompt", "ab", "--temperature", "1.5", "--top_k", "50", "--top_p", "0.9", "--seed", "7"]
    assert onn_generate(run_folder, *arguments, "--stop", "d", "c") == 0
    settings = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "seed": 7, "stop": ["d", "c"]}
    assert capsys.readouterr().out == loaded.generate([("text", "ab")], max_new_tokens=6, **settings) + "\n"


def test_without_inputs_a_text_starts_from_nothing(run_folder, loaded, capsys):
    assert onn_generate(run_folder) == 0
    assert capsys.readouterr().out == loaded.generate([], max_new_tokens=6) + "\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--temperature", "-1"], 1, "temperature is -1.0"),
        (["--top_p", "0"], 1, "top_p is 0.0"),
        (["--top_k", "0"], 1, "top_k is 0"),
        (["--max_new_tokens", "0"], 1, "max_new_tokens is 0"),
        (["--max_new_tokens", "99999"], 1, "context window of 32768"),
        (["--top_k", "many"], 2, "'many'"),
        (["--promt", "x"], 2, "did you mean '--prompt'"),
        (["--image", "missing.png"], 1, "missing.png"),
        (["--audio", "missing.wav"], 1, "missing.wav"),
        (["--prompt", "a\udcff"], 1, "surrogate"),
    ],
)
def test_a_mistake_is_one_line(run_folder, capsys, arguments, exit_code, message):
    assert onn_generate(run_folder, *arguments, short=False) == exit_code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("onn: error: ")
    assert message in lines[-1]
    assert "Traceback" not in captured.err
    assert not captured.out


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short", b"no checkpoint at all"])
def test_an_unusable_checkpoint_is_named(tmp_path, capsys, content):
    path = tmp_path / "broken.ckpt"
    if content is not None:
        path.write_bytes(content)
    assert main(["generate", "--checkpoint", str(path)]) == 1
    assert "broken.ckpt" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_without_a_checkpoint_is_named(tmp_path, capsys):
    assert main(["generate", "--checkpoint", str(tmp_path)]) == 2
    assert f"no complete checkpoint in {tmp_path / 'checkpoints'}" in capsys.readouterr().err


def test_a_class_from_a_foreign_package_needs_trust(modalities, tmp_path, monkeypatch, capsys):
    source = "from datamodules import ImageModality\n\nclass Depth(ImageModality):\n    name = 'depth'\n"
    (tmp_path / "depth_camera.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    depth = importlib.import_module("depth_camera").Depth(patch_size=4)
    path = tmp_path / "last.ckpt"
    save_checkpoint(make_module([*modalities, depth]), path)
    assert onn_generate(path) == 1
    assert "depth_camera.Depth" in (message := capsys.readouterr().err) and "--trust" in message
    assert onn_generate(path, "--trust", "depth_camera") == 0


def test_help_states_the_defaults_of_the_library():
    text, defaults = make_parser().format_help(), inspect.signature(generate).parameters
    assert f"default: {defaults['max_new_tokens'].default}" in text
    assert defaults["temperature"].default == 0
    assert re.search(r"0: greedy \(default\)", text)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A Python process whose terminal knows ASCII only."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.slow
def test_ctrl_c_ends_the_line_and_nothing_else(run_folder, loaded):
    assert len(loaded.generate([], max_new_tokens=400)) >= 100  # so it is still at work when interrupted
    command = ["generate", "--checkpoint", str(run_folder), "--max_new_tokens", "30000"]
    process = start("-m", "onn_lightning", *command)
    assert process.stdout.read(1)  # it streams: text is here long before the end
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert err.decode().strip().splitlines()[-1] == "onn: interrupted"


def test_a_reader_that_has_seen_enough_ends_it_quietly():
    process = start("-c", "from onn_lightning.cli.generate import show; show('智a' for _ in range(10**7))")
    assert process.stdout.read(4) == b"?a?a"  # what the terminal cannot show becomes a question mark
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0
