"""`onn prune`: what it prints, writes and refuses, on a run of the command itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_standins import Outcome, Sensor

from onn_lightning import OmniModule
from onn_lightning.checkpoint import description
from onn_lightning.cli.arguments import amount, memory
from onn_lightning.reshaping.budget import measure

Onn = Callable[..., Outcome]
Write = Callable[..., str]
FREE = ("--min_tokens", "0", "--min_neurons", "4", "--trust", "cli_standins")
LAST = "runs/tiny/checkpoints/last.ckpt"


def parameters_of(path: str) -> int:
    """Counted on the weights themselves."""
    module = OmniModule.load_from_checkpoint(path, modalities=[Sensor()])
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_run_is_pruned_tested_and_trained_on(onn: Onn, write_config: Write, folder: Path) -> None:
    assert onn("fit", "--config", write_config(changes={"trainer.logger": False})).code == 0
    before = (folder / LAST).read_bytes()
    now = parameters_of(LAST)
    pruned = onn("prune", "--checkpoint", "runs/tiny", "--output", "small.ckpt", "--parameters",
                 str(now - 5 * 34), *FREE)  # fmt: skip
    assert pruned.code == 0, pruned.err
    assert re.search(r"block 0: 5 of 32 feed-forward neurons go, lifetime activation [\d.]+% on", pruned.out)
    assert re.search(r"waves/sensor_loss +([\d.]+) -> +([\d.]+) \([+-][\d.]+%\)", pruned.out)
    assert f"budget: {now - 170:,} parameters of at most {now - 170:,}" in pruned.out
    assert parameters_of("small.ckpt") == now - 170
    assert (folder / LAST).read_bytes() == before
    tested = onn("test", "--config", "runs/tiny/config.yaml", "--ckpt_path", "small.ckpt")
    assert tested.code == 0, tested.err  # the config still says 32 neurons, the history knows them
    on = onn("fit", "--config", "tiny.yaml", "--run=on", "--ckpt_path=small.ckpt", "--trainer.max_steps=6")
    assert on.code == 0, on.err
    assert description.read("runs/on/checkpoints/last.ckpt")["global_step"] == 6

    again = onn("prune", "--checkpoint", LAST, "--output", "small.ckpt", "--parameters", "1k", *FREE)
    assert "small.ckpt is there already" in again.error_line
    limit = 0.9 * measure(description.read(LAST), *_described(LAST), 512).memory
    given = ("--memory", str(int(limit)), "--force", *FREE)
    again = onn("prune", "--checkpoint", LAST, "--output", "small.ckpt", *given)
    assert again.code == 0, again.err
    assert "loss: not measured" in again.out
    assert measure(description.read("small.ckpt"), *_described("small.ckpt"), 512).memory <= limit

    too_far = onn("prune", "--checkpoint", LAST, "--output", "no.ckpt", "--parameters", "10", *FREE)
    assert too_far.code == 1
    assert too_far.error_line.startswith("the budget is out of reach: pruning ends at")
    within = onn("prune", "--checkpoint", LAST, "--output", "no.ckpt", "--flops", "3M", *FREE)
    assert within.error_line.startswith("nothing to prune, the network fits its budget")
    assert not Path("no.ckpt").exists()


def _described(path: str) -> tuple[object, ...]:
    return description.restore(description.read(path), path, [Sensor()])


def test_amounts_are_read_as_people_write_them() -> None:
    assert [amount(text) for text in ("1500000", "1.5M", "2k", "3B", "1e6", ".5G")] == [
        1.5e6, 1.5e6, 2e3, 3e9, 1e6, 5e8,
    ]  # fmt: skip
    assert [memory(text) for text in ("512", "512B", "8GB", "8G", "1KiB", "2gib")] == [
        512, 512, 8e9, 8e9, 1024, 2 * 1024**3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no budget: give --parameters, --memory or --flops"),
        (("--parameters", "many"), "'many' is no number above 0"),
        (("--memory", "0"), "'0' is no number of bytes"),
        (("--parametres", "5"), "did you mean '--parameters'?"),
        (("--parameters", "5", "--batches", "-1"), "expected a whole number from 0 on"),
    ],
)
def test_a_wrong_command_line_is_one_line(onn: Onn, arguments: tuple[str, ...], message: str) -> None:
    outcome = onn("prune", "--checkpoint", "a.ckpt", "--output", "b.ckpt", *arguments)
    assert outcome.code == 2
    assert message in outcome.error_line


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from onn_lightning.cli.main import main; code = main(['prune', '--help']); "
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    helped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert "--memory BYTES" in helped.stdout
