"""`onn report` on runs that `onn fit` made."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_standins import Outcome

Onn = Callable[..., Outcome]
Write = Callable[..., str]


def test_a_run_becomes_a_page_in_its_folder(onn: Onn, write_config: Write, folder: Path) -> None:
    assert onn("fit", "--config", write_config(), "--run=mine").code == 0
    outcome = onn("report", "runs/mine")
    assert (outcome.code, outcome.out) == (0, "runs/mine/report.html\n")
    page = (folder / "runs/mine/report.html").read_text(encoding="utf-8")
    for said in ("finished", "4 of 4", "cli_standins.Sensor", "Waves", "step=4.ckpt", "Held-out results"):
        assert said in page, said
    assert "sensor" in json.loads((folder / "runs/mine/record.json").read_text())["totals"]["tokens"]


def test_an_interrupted_and_resumed_run_is_told_start_by_start(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    config = write_config()
    at_step_2 = (
        "--model=cli_standins.Interrupted",
        "--model.at_step=2",
        f"--model.number={int(signal.SIGINT)}",
    )
    assert onn("fit", "--config", config, *at_step_2).code == 130
    assert onn("report", "runs/tiny").code == 0
    page = (folder / "runs/tiny/report.html").read_text(encoding="utf-8")
    assert ">interrupted<" in page and "3 of 4" in page
    assert onn("fit", "--config", config, "--resume").code == 0
    assert onn("report", "runs/tiny", "--output", "again.html").code == 0
    page = (folder / "again.html").read_text(encoding="utf-8")
    assert "resumed 1 times" in page and ">finished<" in page
    assert "resumed after step 3" in page  # marked in the charts
    assert not list((folder / "runs/tiny").glob(".*"))


@pytest.mark.slow
def test_a_killed_run_has_a_page_and_its_start_is_told_as_killed_once_it_goes_on(
    onn: Onn, write_config: Write, folder: Path
) -> None:
    config = write_config()
    at_step_2 = (
        "--model=cli_standins.Interrupted",
        "--model.at_step=2",
        f"--model.number={int(signal.SIGKILL)}",
    )
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests / "cli")))}
    command = [sys.executable, "-m", "onn_lightning", "fit", "--config", config, *at_step_2]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert onn("report", "runs/tiny").code == 0
    page = (folder / "runs/tiny/report.html").read_text(encoding="utf-8")
    assert ">running<" in page and "last sign of life" in page
    assert "--model.number=9" in page  # the command that it was started with
    assert onn("fit", "--config", config, "--resume").code == 0
    assert onn("report", "runs/tiny").code == 0
    page = (folder / "runs/tiny/report.html").read_text(encoding="utf-8")
    assert ">killed<" in page and ">finished<" in page


def test_a_run_before_its_first_step_has_a_page(onn: Onn, write_config: Write, folder: Path) -> None:
    (folder / "runs/new").mkdir(parents=True)
    shutil.copy(write_config(), folder / "runs/new/config.yaml")
    assert onn("report", "runs/new").code == 0
    assert "0 of 4" in (folder / "runs/new/report.html").read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_one_line(onn: Onn, folder: Path) -> None:
    (folder / "runs/mine").mkdir(parents=True)
    outcome = onn("report", "runs/mine")
    assert outcome.code == 2
    assert outcome.error_line.startswith("runs/mine: no run folder")
    outcome = onn("report", "runs/mime")
    assert outcome.code == 2
    assert "no such folder" in outcome.error_line and "did you mean 'runs/mine'?" in outcome.error_line
    assert "RUN" in onn("report").error_line


def test_an_output_that_cannot_be_written_is_one_line(onn: Onn, write_config: Write, folder: Path) -> None:
    (folder / "runs/new").mkdir(parents=True)
    shutil.copy(write_config(), folder / "runs/new/config.yaml")
    assert "is a folder" in onn("report", "runs/new", "--output", "runs").error_line
    assert "there is no folder nosuch" in onn("report", "runs/new", "-o", "nosuch/a.html").error_line
    assert onn("report", "runs/new", "--outputt", "x").code == 2


def test_help_and_mistakes_load_neither_torch_nor_matplotlib(folder: Path) -> None:
    program = (
        "import sys; from onn_lightning.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'matplotlib', 'numpy', 'lightning'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for arguments, code in ((["report", "--help"], 0), (["report", "a", "b"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment
        )
        assert done.stdout.splitlines()[-1] == f"{code} []", done


@pytest.mark.slow
def test_a_browser_runs_the_page_without_a_complaint(onn: Onn, write_config: Write, folder: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    assert onn("fit", "--config", write_config()).code == 0
    assert onn("report", "runs/tiny").code == 0
    page = folder / "runs/tiny/report.html"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert re.search(r"<li[^>]* role=\"button\"", done.stdout)  # the page's script ran under its policy
    assert "CONSOLE" not in done.stderr, done.stderr
