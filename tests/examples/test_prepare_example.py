"""The example of a filter of one's own, through the command line alone, here and on other executors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running_slurm import PARTITION, needs_slurm

from datamodules.prepare.document import Item, pack
from datamodules.prepared.assembly import verify

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "prepare"
VERSE = "The sea is deep,\nthe fish asleep;\nthe moon is bright\nall through the night.\n" * 20
PROSE = "Whoever reads a book in bed\nhas put a lamp beside it first\nor owns a window by the street.\n" * 20


def onn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLE}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "onn_lightning", "prepare", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def config(folder: Path) -> str:
    """The example's config for a corpus of two texts in the current folder."""
    options = yaml.safe_load((EXAMPLE / "laptop.yaml").read_text())
    (folder / "plays").mkdir()
    (folder / "plays" / "prose.txt").write_text(PROSE)
    (folder / "plays" / "verse.txt").write_text(VERSE)
    (folder / "words.txt").write_text("sea 3\nfish 2\n")
    options["sources"]["plays"]["init_args"] = {"path": "plays", "unit_bytes": 1}
    options["tokenizer"]["words"] = "words.txt"
    options["deduplication"] = {"num_buckets": 2}
    options["task_bytes"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    return "config.yaml"


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


def test_the_filter_keeps_verse_and_gives_its_reason_for_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from rhymes import RhymeFilter

    rhymes = RhymeFilter()
    assert rhymes.judge(pack([Item("text", text=VERSE)], "1", "plays")) is None
    assert rhymes.judge(pack([Item("text", text=PROSE)], "2", "plays")) == "prose"
    with pytest.raises(ValueError, match="min_share is 2"):
        RhymeFilter(min_share=2)


def test_training_reads_what_the_bundled_config_prepares_with_the_weights_of_the_quickstart() -> None:
    quickstart, prepare, train = (
        yaml.safe_load(path.read_text())
        for path in (
            ROOT / "configs" / "quickstart.yaml",
            ROOT / "configs" / "prepare_quickstart.yaml",
            EXAMPLE / "train.yaml",
        )
    )
    sources = train["data"]["init_args"]["train"]
    raw = quickstart["data"]["init_args"]["train"]
    assert {source["class_path"] for source in sources.values()} == {"datamodules.PreparedSource"}
    assert {source["init_args"]["path"] for source in sources.values()} == {prepare["output"]}
    assert [source["init_args"]["source"] for source in sources.values()] == list(prepare["sources"])
    weights = [{name: each["init_args"]["weight"] for name, each in some.items()} for some in (sources, raw)]
    assert weights[0] == weights[1]
    text = quickstart["data"]["init_args"]["modalities"][0]["init_args"]
    assert prepare["tokenizer"].items() <= text.items()  # else training would refuse the data


def test_one_file_and_one_line_of_yaml_are_enough(tmp_path: Path) -> None:
    run = onn(tmp_path, "--config", config(tmp_path), "--output", "out")
    assert run.returncode == 0, run.stderr
    (row,) = [line.split() for line in run.stdout.splitlines() if line.startswith("rhymes")]
    assert row[:6] == ["rhymes", "1", "1", "prose", "plays:", "prose.txt:"]
    assert verify(tmp_path / "out").documents == 1


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ray", pytest.param("slurm", marks=needs_slurm)])
def test_on_a_cluster_the_bytes_are_the_same_as_on_a_laptop(tmp_path: Path, executor: str) -> None:
    laptop = config(tmp_path)
    assert onn(tmp_path, "--config", laptop, "--output", "here").returncode == 0
    over = yaml.safe_load((EXAMPLE / f"{executor}.yaml").read_text())
    if executor == "ray":
        over["executor"]["init_args"]["num_cpus"] = 2
    else:
        options = {"partition": PARTITION, "poll_seconds": 0.5, "mem_per_cpu_gb": 1}
        over["executor"]["init_args"] |= options
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(over))
    run = onn(tmp_path, "--config", laptop, "--config", "cluster.yaml", "--output", "there")
    assert run.returncode == 0, run.stderr
    assert "tokenize 4/4: 100%, 2/2 tasks" in run.stderr
    assert shards(tmp_path / "here") == shards(tmp_path / "there")
    assert (tmp_path / "here/manifest.json").read_bytes() == (tmp_path / "there/manifest.json").read_bytes()
