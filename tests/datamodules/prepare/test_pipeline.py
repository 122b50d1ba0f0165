"""`onn prepare` as a whole, on a corpus of some dozen tasks: same bytes whatever happens, clear errors."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipeline_corpus import config_of, contents, error_line, finished, prepare, start, write_corpus

from datamodules.prepare.pipeline_folder import WorkFolder
from datamodules.prepared.assembly import verify
from onn_lightning.cli.main import main

Onn = Callable[..., tuple[int, str, str]]
RESUME = "run the same command with --resume"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    write_corpus(folder)
    return folder


@pytest.fixture
def onn(capsys: pytest.CaptureFixture[str]) -> Iterator[Onn]:
    """`onn prepare` in this process: exit code, stdout, stderr."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(config: dict[str, Any], *flags: str) -> tuple[int, str, str]:
        path = Path(config["output"]).with_suffix(".yaml")
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        capsys.readouterr()
        code = main(["prepare", "--config", str(path), *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run by a process of its own makes of the corpus."""
    output = tmp_path_factory.mktemp("expected") / "out"
    code, _, err = prepare(config_of(corpus, output))
    assert code == 0, err
    assert sorted(path.name for path in output.parent.iterdir()) == ["out", "out.yaml"]
    return contents(output)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_change_a_byte(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path, onn: Onn, workers: int
) -> None:
    code, out, _ = onn(config_of(corpus, tmp_path / "out"), "--workers", str(workers))
    assert code == 0
    assert contents(tmp_path / "out") == expected
    assert out.splitlines()[0].split() == ["step", "kept", "dropped", "reason", "example"]
    assert "broken JSON" in out and "too short" in out and "exact copy" in out
    assert f" documents/s): {tmp_path / 'out'}" in out.splitlines()[-1]


def test_the_result_is_a_verified_data_set_with_every_step_on_record(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for name, content in expected.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    manifest = verify(tmp_path)
    steps = {record["step"]: record for record in manifest.records}
    assert list(steps) == ["read", "length", "deduplication", "tokenize"]
    assert steps["read"]["dropped"] == {"broken JSON": 3}
    assert steps["read"]["examples"]["broken JSON"][0]["id"].startswith("pages: pages.jsonl@")
    assert steps["tokenize"]["kept"] == manifest.documents > 100
    assert len(manifest.shards) > 8
    assert manifest.config["corpus"]["tasks"] > 8
    assert manifest.config["sources"]["texts"]["init_args"]["path"] == str(corpus / "texts")
    assert manifest.totals["image"].items == 12


def test_without_deduplication_there_is_one_stage_and_copies_stay(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path, onn: Onn
) -> None:
    code, _, err = onn(config_of(corpus, tmp_path / "out", deduplication=None))
    assert code == 0 and "1/1" in err and "collect" not in err
    copies = {record["step"]: record for record in json.loads(expected["manifest.json"])["records"]}
    dropped = sum(copies["deduplication"]["dropped"].values())
    assert dropped and verify(tmp_path / "out").documents == copies["tokenize"]["kept"] + dropped


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_the_bytes_are_the_same(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    moments, config, kills = random.Random(), config_of(corpus, tmp_path / "out"), 0
    while True:
        run = start(config, "--resume", "--workers", str(moments.randint(1, 3)))
        work = tmp_path / "out.partial"
        wait = moments.uniform(0.0, 1.5)
        begun = time.monotonic()
        while run.poll() is None and (not work.exists() or time.monotonic() < begun + wait):
            time.sleep(0.005)
            if not work.exists():
                begun = time.monotonic()
        if kills == 4:
            break
        os.killpg(run.pid, signal.SIGKILL)
        finished(run)
        kills += 1
    code, _, err = finished(run)
    assert code == 0, err
    assert contents(tmp_path / "out") == expected
    assert not (tmp_path / "out.partial").exists()


def test_a_killed_worker_is_named_with_its_file_and_the_run_can_be_resumed(
    corpus: Path, tmp_path: Path, onn: Onn
) -> None:
    kill_once = {
        "class_path": "pipeline_standins.KillOnce",
        "init_args": {"marker": str(tmp_path / "marker"), "at": "picture 5"},
    }
    config = config_of(corpus, tmp_path / "out", filters=[kill_once])
    begun = time.monotonic()
    code, _, err = onn(config)
    assert code == 1 and time.monotonic() - begun < 10
    line = error_line(err)
    assert line.startswith("worker ")
    assert "of stage collect was killed by signal 9 while working on task " in line
    assert "(images) (if" in line and line.endswith(RESUME)
    assert onn(config, "--resume")[0] == 0
    interrupted = contents(tmp_path / "out")
    assert onn(config, "--overwrite")[0] == 0
    assert contents(tmp_path / "out") == interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_all_its_processes_and_says_how_to_go_on(
    corpus: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = start(config_of(corpus, tmp_path / "out"))
    while not list(tmp_path.glob("out.partial/stages/collect/completions/*")):
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does
    else:
        run.send_signal(number)
    ended, _, err = finished(run, seconds=10)  # reads stderr until the last process has closed it
    assert ended == code, err
    assert f"what is complete is kept in {tmp_path / 'out.partial'}; go on with --resume" in err


def test_too_many_bad_samples_in_a_row_stop_the_job_and_a_higher_limit_goes_on(
    corpus: Path, tmp_path: Path, onn: Onn
) -> None:
    bad = tmp_path / "bad.jsonl"
    good = (corpus / "pages.jsonl").read_text(encoding="utf-8")
    bad.write_text(good + '{"text": \n' * 5, encoding="utf-8")
    config = config_of(corpus, tmp_path / "out", max_consecutive_bad=4)
    config["sources"]["pages"]["init_args"]["path"] = str(bad)
    code, _, err = onn(config)
    assert code == 1
    line = error_line(err)
    assert line.startswith("stage collect, task ") and "5 bad samples in a row" in line
    assert "source 'pages': pages: bad.jsonl@" in line and "broken JSON" in line
    assert onn({**config, "max_consecutive_bad": 5}, "--resume")[0] == 0


def test_a_changed_config_is_refused_by_key_and_can_be_changed_back(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path, onn: Onn
) -> None:
    config = config_of(corpus, tmp_path / "out")
    run = start(config)
    while not list(tmp_path.glob("out.partial/stages/collect/completions/*")):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    finished(run)

    changed = json.loads(json.dumps(config))
    changed["filters"][0]["init_args"] = {"min_words": 20}
    code, _, err = onn(changed, "--resume")
    assert code == 1
    assert "`filters[0].init_args.min_words` was 50, now it is 20" in error_line(err)
    code, _, err = onn({**config, "filters": []}, "--resume")
    assert "`filters` had 1 entries, now it has 0" in error_line(err)

    code, _, err = onn(config)
    assert code == 1
    assert "holds an unfinished preparation: go on with --resume, or start anew with --ov" in error_line(err)

    assert onn(config, "--resume")[0] == 0
    assert contents(tmp_path / "out") == expected


def test_a_changed_corpus_is_refused_and_the_file_is_named(tmp_path: Path, onn: Onn) -> None:
    write_corpus(tmp_path / "corpus", documents=40)
    config = config_of(tmp_path / "corpus", tmp_path / "out", max_consecutive_bad=1)
    pages, texts = tmp_path / "corpus" / "pages.jsonl", tmp_path / "corpus" / "texts"
    pages.write_text(pages.read_text(encoding="utf-8") + '{"text": \n' * 2, encoding="utf-8")
    assert onn(config)[0] == 1

    (texts / "zz.txt").write_text("a new one")
    assert "has appeared" in error_line(onn(config, "--resume")[2])
    (texts / "zz.txt").unlink()
    state = pages.stat()
    pages.write_text(pages.read_text(encoding="utf-8").replace("short", "longer"), encoding="utf-8")
    line = error_line(onn(config, "--resume")[2])
    assert "the corpus is not the one that this preparation began with: 'pages.jsonl'" in line
    assert "of source 'pages' has changed" in line
    pages.write_text(pages.read_text(encoding="utf-8").replace("longer", "short"), encoding="utf-8")
    assert f"modified {time.strftime('%Y-')}" in error_line(onn(config, "--resume")[2])
    os.utime(pages, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert onn({**config, "max_consecutive_bad": 9}, "--resume")[0] == 0


def test_only_one_process_prepares_an_output(corpus: Path, tmp_path: Path, onn: Onn) -> None:
    with WorkFolder(tmp_path / "out") as work:
        code, _, err = onn(config_of(corpus, tmp_path / "out"), "--overwrite")
        assert code == 1
        expected = f"'{tmp_path / 'out'}' is being prepared by another process (process {os.getpid()} on "
        assert error_line(err).startswith(expected)
        assert work.path.exists()
    assert not work.path.exists()


def test_an_output_is_never_touched_before_the_new_one_is_complete(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path, onn: Onn
) -> None:
    config = config_of(corpus, tmp_path / "out")
    assert onn(config)[0] == 0

    code, _, err = onn(config)
    assert code == 1 and "is a prepared data set already" in error_line(err)
    code, out, _ = onn(config, "--resume")
    assert code == 0 and "complete since an earlier run" in out
    code, _, err = onn({**config, "shard_bytes": 1}, "--resume")
    assert code == 1 and "prepared otherwise (`shard_bytes` was 30000, now it is 1)" in error_line(err)

    stop = {"class_path": "pipeline_standins.KillOnce", "init_args": {"marker": "/none/x", "at": "picture"}}
    code, _, err = onn({**config, "filters": [stop]}, "--overwrite")
    assert code == 1 and "FileNotFoundError" not in error_line(err)
    assert contents(tmp_path / "out") == expected
    assert onn({**config, "shard_bytes": 1 << 20}, "--overwrite")[0] == 0
    assert verify(tmp_path / "out").documents and contents(tmp_path / "out") != expected
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_of_other_files_is_never_replaced(corpus: Path, tmp_path: Path, onn: Onn) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    code, _, err = onn(config_of(corpus, tmp_path / "out"), "--overwrite")
    assert code == 1 and "holds files that are no prepared data set" in error_line(err)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_preparation_that_keeps_nothing_says_why(corpus: Path, tmp_path: Path, onn: Onn) -> None:
    impossible = {
        "class_path": "datamodules.prepare.filters.length.LengthFilter",
        "init_args": {"max_characters": 1},
    }
    config = config_of(corpus, tmp_path / "out", filters=[impossible])
    code, _, err = onn(config)
    assert code == 1
    assert "nothing is left of the corpus: 171 dropped by 'length' (too long)" in error_line(err)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_damages_nothing_and_with_room_it_goes_on(
    corpus: Path, expected: dict[str, bytes], small_disk: Path, tmp_path: Path, onn: Onn
) -> None:
    few = config_of(corpus, small_disk / "few", deduplication=None)
    del few["sources"]["pages"]
    assert onn(few)[0] == 0
    before = contents(small_disk / "few")

    config = config_of(corpus, small_disk / "out")
    code, _, err = onn(config)
    assert code == 1
    assert "No space left on device" in error_line(err) and RESUME in error_line(err)
    assert contents(small_disk / "few") == before and not (small_disk / "out").exists()

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert onn(config, "--resume")[0] == 0
    assert contents(small_disk / "out") == expected

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code = main(["prepare", "--input", str(corpus / "texts"), "--output", str(small_disk / "more")])
    assert code == 1


def test_an_output_that_cannot_be_made_is_one_line(corpus: Path, tmp_path: Path, onn: Onn) -> None:
    (tmp_path / "file").write_text("")
    config = {**config_of(corpus, tmp_path / "out"), "output": str(tmp_path / "file" / "out")}
    code, _, err = onn({**config, "output": str(tmp_path / "out")}, "--output", config["output"])
    assert code == 1
    assert error_line(err).endswith("Not a directory") and str(tmp_path / "file") in error_line(err)
