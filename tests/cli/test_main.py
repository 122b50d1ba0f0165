"""The command's entry: help, verbs, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_standins import Outcome

from onn_lightning.cli import main as entry
from onn_lightning.cli.errors import UsageError, foreseen, nearest
from onn_lightning.cli.fetch import hint

ROOT = Path(__file__).parents[2]
Onn = Callable[..., Outcome]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)


def test_help_needs_neither_torch_nor_lightning_and_answers_at_once() -> None:
    start = time.perf_counter()
    shown = python(
        "import sys; from onn_lightning.cli.main import main; main(['--help']);"
        "assert not {'torch', 'lightning', 'yaml', 'numpy'} & set(sys.modules)"
    )
    assert time.perf_counter() - start < 1.5  # 0.06 s on an idle machine; the tests' machine may be busy
    for verb in entry.VERBS:
        assert f"\n  {verb} " in shown.stdout


@pytest.mark.parametrize("verb", ["fetch", "generate"])
def test_help_of_a_verb_of_ours_needs_no_torch(verb: str) -> None:
    python(
        "import sys; from onn_lightning.cli.main import main;"
        f"assert main(['{verb}', '--help']) == 0; assert 'torch' not in sys.modules"
    )


def test_importing_the_package_does_not_import_torch() -> None:
    python("import sys, onn_lightning; assert 'torch' not in sys.modules")


def test_every_public_name_is_importable() -> None:
    import onn_lightning

    for name in onn_lightning.__all__:
        assert getattr(onn_lightning, name) is not None
    with pytest.raises(AttributeError, match="OmniModul"):
        onn_lightning.OmniModul  # noqa: B018


def test_version_is_the_packages(onn: Onn) -> None:
    assert onn("--version").out == "onn_lightning 0.1.0\n"


def test_a_mistyped_verb_is_one_line_with_the_nearest_verb(onn: Onn) -> None:
    outcome = onn("fti", "--config", "x.yaml")
    assert outcome.code == 2
    assert outcome.error_line.startswith("unknown verb 'fti' (did you mean 'fit'?)")


def test_no_verb_and_options_before_the_verb_are_explained(onn: Onn) -> None:
    assert onn().code == onn("--trainer.max_steps=1", "fit").code == 2
    assert "no verb given" in onn().error_line
    assert "options come after the verb" in onn("--trainer.max_steps=1", "fit").error_line


def test_a_mistyped_option_of_fetch_is_one_line(onn: Onn) -> None:
    assert "did you mean '--to'" in onn("fetch", "quickstart", "--too", "x").error_line
    assert "did you mean 'quickstart'" in onn("fetch", "quickstar").error_line


def test_data_that_cannot_be_read_is_one_line_and_exit_1(onn: Onn, write_config: Callable[..., str]) -> None:
    config = write_config(changes={"data.init_args.train.waves.init_args.damaged": "seven.wav"})
    outcome = onn("fit", "--config", config)
    assert outcome.code == 1
    assert outcome.error_line.endswith("seven.wav: truncated; fetch it again")


@pytest.mark.parametrize(
    ("key", "value", "stated"),
    [
        ("data.init_args.modalities.0.init_args.scale", 0, "Sensor: scale is 0.0, it must be positive"),
        ("data.init_args.row_length", 1, "`row_length` must be at least 2, got 1"),
        (
            "model.init_args.loss_weights",
            {"vidio": 1},
            "loss_weights names ['vidio'], the run has ['sensor']",
        ),
    ],
)
def test_what_a_constructor_says_against_its_arguments_is_the_line(
    onn: Onn, write_config: Callable[..., str], key: str, value: Any, stated: str
) -> None:
    outcome = onn("fit", "--config", write_config(changes={key: value}))
    assert (outcome.code, outcome.error_line) == (1, stated)


def test_missing_quickstart_data_names_the_command_that_obtains_it() -> None:
    assert "onn fetch quickstart" in hint("words file 'data/quickstart/words.txt': No such file or directory")
    assert hint("data/mine/words.txt: No such file or directory") == ""


def test_debug_keeps_the_traceback_of_a_foreseen_error(onn: Onn, write_config: Callable[..., str]) -> None:
    config = write_config(changes={"data.init_args.train.waves.init_args.damaged": "seven.wav"})
    with pytest.raises(ValueError, match="truncated"):
        onn("fit", "--debug", "--config", config)


def test_a_missing_file_is_named_in_one_line() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("no/such/file.txt").read_text()
    report = foreseen(caught.value)
    assert report is not None
    assert (report.line, report.exit_code) == ("no/such/file.txt: No such file or directory", 1)


def test_an_error_inside_another_library_is_a_bug_and_keeps_its_traceback() -> None:
    import json

    with pytest.raises(ValueError) as caught:
        json.loads("{")
    assert foreseen(caught.value) is None
    assert foreseen(ZeroDivisionError()) is None


def test_an_error_stated_in_a_loader_worker_is_its_last_line() -> None:
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        f'  File "{ROOT}/datamodules/sources.py", line 3, in read\n    raise ValueError(...)\n'
        "ValueError: corpus 'x' is empty: obtain it\n"
    )
    report = foreseen(ValueError(text))
    assert report is not None
    assert report.line == "corpus 'x' is empty: obtain it"


def test_usage_errors_are_folded_into_one_line() -> None:
    report = foreseen(UsageError("first\n   second"))
    assert report is not None
    assert (report.line, report.exit_code) == ("first second", 2)


def test_nearest_name_ignores_case_and_stays_silent_when_nothing_is_alike() -> None:
    assert nearest("OMNIMODULE", ["OmniModule", "Batch"]) == " (did you mean 'OmniModule'?)"
    assert nearest("zzz", ["OmniModule", "Batch"]) == ""
