"""The command line of `onn prepare`: flags, configs, and what is said of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_standins import Outcome

from datamodules.prepare.pipeline_guess import guess_reader
from datamodules.prepared.assembly import verify
from onn_lightning.cli.config_files import bundled_folder, bundled_names
from onn_lightning.cli.prepare import make_parser, make_preparation

Onn = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
CONFIG = """\
output: prepared
sources:
  pages:
    class_path: datamodules.prepare.readers.TextReader
    init_args:
      path: texts
filters:
  - class_path: datamodules.prepare.filters.LengthFilter
    init_args: {min_words: 3}
tokenizer: {words: words.txt}
executor:
  class_path: datamodules.prepare.executors.LocalExecutor
  init_args: {workers: 2}
"""


@pytest.fixture
def config(folder: Path) -> str:
    """A config, and the corpus it names, in the current folder."""
    (folder / "texts").mkdir()
    (folder / "texts" / "one.txt").write_text("the sea and the whale and the ship and more of that")
    (folder / "texts" / "two.txt").write_text("short")
    (folder / "words.txt").write_text("sea 3\nwhale 2\n")
    (folder / "mine.yaml").write_text(CONFIG)
    return "mine.yaml"


def test_a_config_is_prepared_and_summed_up(onn: Onn, config: str) -> None:
    outcome = onn("prepare", "--config", config)
    assert outcome.code == 0, outcome.err
    assert verify("prepared").documents == 1
    rows = [line.split() for line in outcome.out.splitlines()]
    assert rows[1:3] == [
        ["read", "2", "0"],
        ["length", "1", "1", "too", "short", "pages:", "two.txt:", "short"],
    ]
    assert outcome.out.splitlines()[-1].endswith("documents/s): prepared")


def test_flags_are_enough_and_override_a_config(onn: Onn, config: str) -> None:
    flags = ["--tokenizer.words", "words.txt", "--workers", "1"]
    assert onn("prepare", "--input", "texts", "--output", "plain", *flags).code == 0
    assert verify("plain").documents == 2
    assert onn("prepare", "--config", config, "--output", "other", "--filters", "[]").code == 0
    assert verify("other").documents == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("filters:", "filtres:", "mine.yaml:7: unknown key 'filtres' (did you mean 'filters'?)"),
        ("min_words", "min_wrods", "mine.yaml:9: filters[0].init_args.min_wrods: unknown key (did you mean"),
        (
            "path: texts",
            "pth: texts",
            "mine.yaml:6: sources.pages.init_args.pth: unknown key (did you mean 'path'",
        ),
        ("LengthFilter", "LenghtFilter", "mine.yaml:8: filters[0].class_path: no 'LenghtFilter' in module"),
        ("workers: 2", "workers: two", "mine.yaml:13: executor.init_args.workers: expected int"),
    ],
)
def test_a_mistake_in_a_config_is_one_line_with_its_place(
    onn: Onn, config: str, old: str, new: str, message: str
) -> None:
    Path(config).write_text(CONFIG.replace(old, new))
    outcome = onn("prepare", "--config", config)
    assert (outcome.code, outcome.error_line[: len(message)]) == (2, message)
    assert not Path("prepared.partial").exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "nothing to prepare: give --config or --input; bundled: "),
        (["--input", "texts"], 2, "no output given: add --output FOLDER"),
        (["--config", "mine.yaml", "--input", "texts"], 2, "both `sources` and --input are given: drop one"),
        (["--config", "mine.yaml", "--workers", "0"], 1, "`workers` must be at least 1, got 0"),
        (
            ["--config", "mine.yaml", "--workrs", "2"],
            2,
            "unknown option '--workrs' (did you mean '--workers'?)",
        ),
        (["--config", "prepare_quikstart"], 2, "--config prepare_quikstart: no such file"),
        (["--input", "nothing", "--output", "x"], 1, "'nothing' does not exist: correct --input"),
        (["--config", "mine.yaml", "--task_bytes", "0"], 1, "`task_bytes` must be at least 1, got 0"),
        (
            ["--config", "mine.yaml", "--tokenizer.words", "none.txt"],
            1,
            "words file 'none.txt' cannot be read: No such file or directory",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    onn: Onn, config: str, flags: list[str], code: int, message: str
) -> None:
    outcome = onn("prepare", *flags)
    assert (outcome.code, outcome.error_line[: len(message)]) == (code, message)


def test_help_names_every_option_and_shows_examples(onn: Onn) -> None:
    shown = onn("prepare", "--help").out
    for option in ("--config", "--input", "--output", "--resume", "--overwrite", "--workers", "--filters"):
        assert f"  {option}" in shown or f", {option}" in shown
    assert "onn prepare --config prepare_quickstart --resume" in shown


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["a/b.txt", "c.md"], "TextReader"),
        (["x.jsonl", "img/1.png"], "JsonLinesReader"),
        (["x.parquet"], "ParquetReader"),
        (["x-000.tar", "x-001.tar.gz"], "TarReader"),
        (["1.png", "1.txt", "2.WAV", "2.txt"], "MediaFolderReader"),
        (["dataset_info.json", "state.json"], "HuggingFaceReader"),
    ],
)
def test_the_kind_of_an_input_is_found_by_its_files(folder: Path, files: list[str], kind: str) -> None:
    for name in files:
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).touch()
    assert type(guess_reader("in")).__name__ == kind
    if kind not in ("MediaFolderReader", "HuggingFaceReader"):
        assert type(guess_reader(f"in/{files[0]}")).__name__ == kind


def test_an_input_of_several_kinds_or_none_is_refused(folder: Path) -> None:
    (folder / "in").mkdir()
    with pytest.raises(ValueError, match=r"cannot tell what kind .* none that is known"):
        guess_reader("in")
    (folder / "in" / "a.jsonl").touch()
    (folder / "in" / "a.parquet").touch()
    with pytest.raises(ValueError, match="JSON Lines, Parquet"):
        guess_reader("in")


def test_inputs_of_the_same_name_stay_apart(folder: Path) -> None:
    for name in ("a/pages.jsonl", "b/pages.jsonl.gz", "c/pages.jsonl"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    parser = make_parser()
    inputs = ["--input", "a/pages.jsonl", "--input", "b/pages.jsonl.gz", "--input", "c/pages.jsonl"]
    preparation = make_preparation(parser, parser.parse_args([*inputs, "--output", "x"]))
    assert list(preparation.sources) == ["pages", "pages-2", "pages-3"]


@pytest.mark.parametrize("name", [name for name in bundled_names() if name.startswith("prepare_")])
def test_every_bundled_config_of_this_verb_can_be_built(name: str, folder: Path) -> None:
    parser = make_parser()
    assert make_preparation(parser, parser.parse_args(["--config", name])).sources
    keys = set(yaml.safe_load((bundled_folder() / name).read_text()))
    assert keys <= {action.dest.split(".")[0] for action in parser._actions}


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "data/quickstart/train").is_dir(), reason="needs `onn fetch quickstart`")
def test_the_quickstart_corpus_is_prepared_whole(
    onn: Onn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    outcome = onn("prepare", "--config", "prepare_quickstart", "--output", str(tmp_path / "out"))
    assert outcome.code == 0, outcome.err
    manifest = verify(tmp_path / "out")
    lost = sum(sum(record["dropped"].values()) for record in manifest.records)
    assert manifest.documents > 10_000 and lost < 100, json.dumps(manifest.records, indent=1)
    assert set(manifest.totals) == {"text", "image", "audio"}
