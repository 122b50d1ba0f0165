"""`onn export`: a run becomes safetensors from which other verbs work; mistakes are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_standins import Outcome
from safetensors.torch import load_file

Onn = Callable[..., Outcome]
Write = Callable[..., str]


def test_a_run_is_exported_and_a_second_time_refused(onn: Onn, write_config: Write, folder: Path) -> None:
    assert onn("fit", "--config", write_config(), "--run", "small").code == 0
    outcome = onn("export", "runs/small", "--to", "out")
    assert outcome.code == 0, outcome.err
    assert "tensors" in outcome.out and "1 file" in outcome.out
    assert load_file(folder / "out/model.safetensors")
    again = onn("export", "runs/small", "--to", "out")
    assert again.code == 2 and "give another name" in again.err
    for verb in ("fit", "validate", "test"):
        refused = onn(verb, "--config", write_config(), "--run", "other", "--ckpt_path", "out")
        assert refused.code == 2 and "--ckpt_path out: this is an export: weights only" in refused.error_line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--to", "out"], "no such checkpoint"),
        ([".", "--to", "out"], "no complete checkpoint"),
        (["x.ckpt"], "--to"),
        (["x.ckpt", "--to", "out", "--max_file_size", "large"], "no number of bytes"),
        (["x.ckpt", "--to", "out", "--dtype", "int8"], "invalid choice"),
    ],
)
def test_a_mistake_is_one_line(onn: Onn, arguments: list[str], message: str) -> None:
    outcome = onn("export", *arguments)
    assert outcome.code in (1, 2) and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
