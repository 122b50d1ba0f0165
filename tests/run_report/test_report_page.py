"""The page of a run: whole, self-contained, readable, whatever the folder lacks or holds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import (
    NOW,
    page_of,
    start_entry,
    whole_run,
    write_answers,
    write_config,
    write_logs,
    write_neurons,
    write_record,
)

from onn_lightning.checkpoint import description
from onn_lightning.nn import TrunkConfig
from onn_lightning.run_report.page import page
from onn_lightning.run_report.run import NoRunError, read_run

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;</style></title>\x00\u202e]]>--><!--"
PARTS = ("config.yaml", "record.json", "csv", "samples.json", "results.json", "neurons.npz")


def test_a_whole_run_is_shown_with_all_its_parts(tmp_path: Path) -> None:
    strict = page_of(whole_run(tmp_path / "mine"))
    for said in (
        "finished",
        "40 of 100",
        "960",  # tokens
        "4.0%",  # padding
        "1,500",  # parameters
        "step 40",
        "seven.png",
        "tokenizer abc-def-1",
        "train/something_new",  # a figure that no chart knows
        "24 neurons",
        "max_steps: 100",
        "✓ as expected",
        "skipped: torn",
    ):
        assert said in strict.text, said
    assert "checkpoints – no complete one (yet)" in strict.text


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_lacks_a_part_is_shown_without_it_and_the_part_is_named(tmp_path: Path, part: str) -> None:
    folder = whole_run(tmp_path / "run")
    path = folder / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    strict = page_of(folder)
    assert re.search(rf"{part}\S* –", strict.text), strict.text[:900]


@pytest.mark.parametrize("part", [part for part in PARTS if part != "csv"] + ["csv/version_0/metrics.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage", b"[1, 2", b'{"starts": 7, "val": [1]}'])
def test_a_damaged_part_is_named_and_the_rest_is_shown(tmp_path: Path, part: str, content: bytes) -> None:
    folder = whole_run(tmp_path / "run")
    (folder / part).write_bytes(content)
    assert "About this page" in page_of(folder).text


def test_arrays_that_would_run_code_when_read_are_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (Path(tmp_path / "pwned"),)  # type: ignore[return-value]

    folder = whole_run(tmp_path / "run")
    np.savez(folder / "neurons.npz", stride=np.array([Evil()], dtype=object))
    strict = page_of(folder)
    assert "neurons.npz –" in strict.text
    assert not (tmp_path / "pwned").exists()


def test_yaml_that_would_build_objects_is_not_read(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "run")
    (folder / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'pwned'}']\n")
    assert "config.yaml –" in page_of(folder).text
    assert not (tmp_path / "pwned").exists()


def test_only_the_config_is_there_before_the_first_step(tmp_path: Path) -> None:
    write_config(tmp_path)
    strict = page_of(tmp_path)
    assert "nothing was logged yet" in strict.text
    assert "0 of 100" in strict.text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(NoRunError, match="no run folder"):
        read_run(tmp_path)
    with pytest.raises(NoRunError, match="no such folder"):
        read_run(tmp_path / "nosuch")


def test_whatever_data_holds_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / "run<b>"
    folder.mkdir()
    write_config(folder, HOSTILE.replace("\x00", ""), **{HOSTILE.replace("\x00", ""): HOSTILE})
    write_logs(
        folder,
        {
            "train/pi": [0.5, 0.5],
            f"val/{HOSTILE}/bits_per_byte": [1.0, 2.0],
            f"train/{HOSTILE}_loss": [1.0, 2.0],
        },
    )
    start = start_entry(
        state=HOSTILE, error=HOSTILE, device=HOSTILE, command=["fit", HOSTILE], versions={HOSTILE: HOSTILE}
    )
    write_record(
        folder,
        [start, start],
        parameters={HOSTILE: 3},
        totals={"tokens": {HOSTILE: 1}, "places": 2, "seconds": {HOSTILE: 1.0}},
        sources={"train": {HOSTILE: {"documents": 1}}, HOSTILE: {HOSTILE: {}}},
        fingerprints={HOSTILE: {HOSTILE: HOSTILE}},
    )
    write_answers(folder, HOSTILE, HOSTILE, HOSTILE)
    write_neurons(folder, {f"blocks.0.{HOSTILE.replace('.', '')}": 4})
    html = page(read_run(folder), NOW)
    strict = page_of(folder)
    assert "alert(1)" in strict.text and "alert(2)" in strict.text  # as text
    assert [tag for tag, _ in strict.attributes].count("script") == 2
    assert not any("alert" in text for tag, text in strict.texts if tag in ("script", "style"))
    assert "\x00" not in html and "\u202e" not in html
    assert "of the step" in strict.text  # there are charts


def test_a_picture_that_is_none_is_left_out(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "run")
    for picture in ("javascript:alert(1)", "x" * 10, base64.b64encode(b"<svg onload=alert(1)>").decode()):
        item = {"modality": "image", "text": "a.png", "picture": picture}
        samples = {"val": {"samples": [{"source": "zh", "prompt": [item], "answer": "a"}]}}
        (folder / "samples.json").write_text(json.dumps(samples))
        strict = page_of(folder)
        assert "a.png" in strict.text
        assert not [tag for tag, _ in strict.attributes if tag == "img"]


def test_the_policy_of_the_page_allows_its_own_script_alone(tmp_path: Path) -> None:
    strict = page_of(whole_run(tmp_path / "run"))
    policy = next(given["content"] for _, given in strict.attributes if given.get("http-equiv"))
    script = next(text for tag, text in strict.texts[::-1] if tag == "script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_numbers_that_are_none_are_marked_and_break_nothing(tmp_path: Path) -> None:
    nothing = float("nan")
    write_config(tmp_path)
    write_logs(
        tmp_path,
        {
            "train/main_loss": [1.0, nothing, float("inf"), 2.0],
            "train/pi": [nothing] * 4,
            "train/tau": [1e308, -1e308, 1.0, nothing],
            "train/activation_rate": [0.5, 0.5, 0.5, nothing],
        },
    )
    strict = page_of(tmp_path)
    assert "main (2 not finite)" in strict.text
    json.loads(next(text for tag, text in strict.texts if tag == "script"))


def test_a_long_run_of_many_figures_stays_small(tmp_path: Path) -> None:
    write_config(tmp_path)
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(300, 320)).tolist()
    write_logs(tmp_path, {f"train/group_{number % 80}/{number}": row for number, row in enumerate(noise)})
    html = page(read_run(tmp_path), NOW)
    assert len(html.encode()) < 3_000_000
    assert "parts" in page_of(tmp_path).text


def test_figures_of_any_name_have_a_chart(tmp_path: Path) -> None:
    write_config(tmp_path)
    names = ("val/1²/bits_per_byte", "train/½/x", "train/a\\1b/x", "lr-Adam/pg1", "val//x", "a/")
    write_logs(tmp_path, {name: [1.0, 2.0] for name in ("train/pi", *names)})
    strict = page_of(tmp_path)
    assert "1², held out" in strict.text and "train/a\\1b/x" in strict.text and "pg1" in strict.text


def saved_checkpoint(folder: Path, **changes: object) -> None:
    config = TrunkConfig(16, 2, 2, intermediate_size=24)
    history = [{"step": 30, "what": "new block 1 of <2>", "trunk": {}}]
    checkpoint = {
        "state_dict": {"embedder": (table := torch.zeros(3, 4)), "head": table},  # tied
        "global_step": 40,
        description.KEY: description.describe(config, [], history),
        **changes,
    }
    (folder / "checkpoints").mkdir()
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")


def test_what_a_checkpoint_says_is_shown_and_growth_is_marked_in_the_charts(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "run")
    saved_checkpoint(folder)
    strict = page_of(folder)
    for said in ("2 blocks of width 16, 2 heads, 24 neurons", "new block 1 of <2>", "last.ckpt"):
        assert said in strict.text, said
    assert [given for _, given in strict.attributes if given.get("class") == "mark"]
    (folder / "record.json").unlink()
    assert "12 in the tensors of last.ckpt" in page_of(folder).text


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.mkdir, (tmp_path / "pwned",)

    folder = whole_run(tmp_path / "run")
    saved_checkpoint(folder, callbacks=Evil())
    assert "checkpoints –" in page_of(folder).text
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("history", [[{"step": "x"}], 5, [7]])
def test_a_checkpoint_with_a_strange_description_is_named(tmp_path: Path, history: object) -> None:
    folder = whole_run(tmp_path / "run")
    described = description.describe(TrunkConfig(16, 2, 2), []) | {"history": history}
    saved_checkpoint(folder, **{description.KEY: described})
    assert "checkpoints –" in page_of(folder).text


def test_a_resumed_run_is_marked_in_every_chart_and_told_start_by_start(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "run")
    starts = [
        start_entry(state="interrupted", last_step=20, started=NOW - 9000, alive=NOW - 8000),
        start_entry(state="running", first_step=15, last_step=30, versions={"Python": "3.12.1"}),
        start_entry(first_step=30, device="H100"),
    ]
    write_record(folder, starts)
    strict = page_of(folder)
    marks = [given for tag, given in strict.attributes if given.get("class") == "mark"]
    charts = [given for _, given in strict.attributes if given.get("id", "").startswith("chart-")]
    assert len(marks) == 2 * len([chart for chart in charts if chart.get("class") == "chart"])
    for said in ("resumed 2 times", "interrupted", "killed", "Python 3.12.1", "H100", "trained anew"):
        assert said in strict.text, said
