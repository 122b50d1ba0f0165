"""Bundled configs by bare name, and what is refused before a config is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_standins import Outcome

from onn_lightning.cli import config_files
from onn_lightning.cli.config_files import bundled_folder, bundled_names, check_config, find_config, locate
from onn_lightning.cli.errors import UsageError

KEYS = ["data", "model", "trainer"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with two bundled configs; the current folder is another one."""
    package, here = tmp_path / "package", tmp_path / "here"
    (package / "configs" / "strategy").mkdir(parents=True)
    here.mkdir()
    (package / "configs" / "quickstart.yaml").write_text("trainer: {max_steps: 1}\n")
    (package / "configs" / "strategy" / "fsdp2.yaml").write_text("trainer: {}\n")
    monkeypatch.setattr(config_files, "_PACKAGE", package)
    monkeypatch.chdir(here)
    return package / "configs"


def test_a_bundled_config_is_found_by_its_bare_name_from_any_folder(bundle: Path) -> None:
    assert find_config("quickstart.yaml") == bundle / "quickstart.yaml"
    assert find_config("quickstart") == bundle / "quickstart.yaml"
    assert find_config("strategy/fsdp2.yaml") == bundle / "strategy" / "fsdp2.yaml"
    assert bundled_names() == ["quickstart.yaml", "strategy/fsdp2.yaml"]


def test_a_path_wins_over_a_bundled_name(bundle: Path) -> None:
    Path("quickstart.yaml").write_text("trainer: {}\n")
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")


def test_a_checkout_without_configs_in_the_package_finds_those_beside_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_files, "_PACKAGE", bundle.parent / "onn_lightning")
    assert bundled_folder() == bundle


@pytest.mark.parametrize("name", ["quickstrt.yaml", "quickstart.yml", "configs/quickstart.yaml"])
def test_an_unknown_config_names_the_nearest_bundled_one(bundle: Path, name: str) -> None:
    with pytest.raises(
        UsageError, match=r"no such file.*did you mean 'quickstart.yaml'.*strategy/fsdp2.yaml"
    ):
        find_config(name)


def test_a_bundled_name_never_leaves_the_bundle(bundle: Path) -> None:
    (bundle.parent / "secret.yaml").write_text("trainer: {}\n")
    with pytest.raises(UsageError, match="no such file"):
        find_config("../secret.yaml")


def test_a_folder_is_no_config(bundle: Path) -> None:
    Path("runs").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        find_config("runs")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model:\n\tx: 1\n", r"bad.yaml:2: not valid YAML"),
        (b"model: {a: [1, 2\n", r"bad.yaml:2: not valid YAML"),
        (b"trainer: {}\nmodle: {}\n", r"bad.yaml:2: unknown key 'modle' \(did you mean 'model'\?\)"),
        (b"trainer: {a: 1}\ntrainer: {b: 2}\n", r"bad.yaml:2: key 'trainer' is already given in line 1"),
        (b"data: [{x: 1,\n  x: 2}]\n", r"bad.yaml:2: key 'x' is already given in line 1"),
        (b"- 1\n", "bad.yaml: not a mapping"),
        (b"", "bad.yaml: not a mapping"),
        (b"\xff\xfe", "bad.yaml: not UTF-8 text"),
        (b"model: \x00\n", "bad.yaml: not readable as YAML"),
    ],
)
def test_a_malformed_config_is_refused_with_file_and_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        check_config(tmp_path / "bad.yaml", KEYS)


def test_a_tag_that_would_build_an_object_is_refused_and_runs_nothing(
    onn: Callable[..., Outcome], folder: Path
) -> None:
    (folder / "evil.yaml").write_text("model: !!python/object/apply:os.mkdir ['pwned']\n")
    outcome = onn("fit", "--config", "evil.yaml")
    assert outcome.code == 2
    assert outcome.error_line.startswith("evil.yaml:1: only plain YAML is read")
    assert not (folder / "pwned").exists()


def test_the_line_of_a_nested_key_is_found_through_lists_and_left_out_init_args(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "data:\n  modalities:\n  - class_path: a.A\n  - class_path: b.B\n    init_args:\n      width: 3\n"
    )
    place = locate(path, ["data", "init_args", "modalities", "init_args", "width"])
    assert place is not None
    assert (place.line, place.keys) == (6, ("data", "modalities[1]", "init_args", "width"))
    assert locate(path, ["data", "nowhere"]) is None


def test_every_bundled_config_is_plain_yaml_with_known_keys() -> None:
    keys = ["ckpt_path", "data", "model", "resume", "run", "seed_everything", "trainer", "weights_only"]
    for name in bundled_names():
        if not name.startswith("prepare_"):  # of `onn prepare`, whose keys are others
            check_config(bundled_folder() / name, keys)
