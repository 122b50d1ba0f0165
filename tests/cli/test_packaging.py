"""What a user gets from pip: the wheel's contents, and the metadata they rest on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import onn_lightning

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_package_and_metadata_have_one_version() -> None:
    assert PROJECT["version"] == onn_lightning.__version__


def test_every_direct_dependency_is_pinned_for_the_tests_and_no_other() -> None:
    def name(requirement: str) -> str:
        end = next((i for i, char in enumerate(requirement) if char in "[<>=!~ ;"), len(requirement))
        return requirement[:end].lower()

    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    assert {name(line) for line in wanted} == {name(line) for line in lines if not line.startswith("#")}


@pytest.mark.slow
def test_the_wheel_holds_both_packages_the_configs_and_the_data_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("onn_lightning-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "onn = onn_lightning.cli.main:main" in archive.read(entry_points).decode()

    tracked = subprocess.run(
        ["git", "ls-files", "onn_lightning", "datamodules"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    sources = [str(path.relative_to(ROOT)) for path in (ROOT / "datamodules").rglob("*.py")]
    assert set(tracked or sources) <= names  # outside git: at least the modules
    assert {"onn_lightning/py.typed", "datamodules/py.typed"} <= names
    for config in (ROOT / "configs").rglob("*.yaml"):
        assert f"onn_lightning/{config.relative_to(ROOT).as_posix()}" in names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"onn_lightning", "datamodules"}
