"""`last.ckpt` leads to a whole checkpoint at any moment, and counts as one with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from onn_lightning.checkpoint import writing
from onn_lightning.checkpoint.complete import newest_checkpoint, newest_intact_checkpoint
from onn_lightning.checkpoint.pointer import LAST, point_to
from onn_lightning.checkpoint.shard_index import INDEX


def written(folder: Path, step: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"step={step}.ckpt"
    writing.write({"global_step": step}, path)
    return path


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_it_is_a_relative_link_that_survives_a_move_of_the_folder(tmp_path: Path) -> None:
    for step in (1, 2):
        point_to(written(tmp_path / "a", step))
        assert step_of(tmp_path / "a" / LAST) == step
    (tmp_path / "a").rename(tmp_path / "b")
    assert step_of(tmp_path / "b" / LAST) == 2
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [LAST, "step=1.ckpt", "step=2.ckpt"]


def test_a_whole_file_of_an_older_run_gives_way_to_the_link(tmp_path: Path) -> None:
    writing.write({"global_step": 1}, tmp_path / LAST)
    point_to(written(tmp_path, 2))
    assert (tmp_path / LAST).is_symlink() and step_of(tmp_path / LAST) == 2


def test_a_whole_folder_of_an_older_run_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / LAST).mkdir()
    (tmp_path / LAST / INDEX).write_text("index")
    point_to(written(tmp_path, 2))
    assert step_of(tmp_path / LAST) == 2
    assert (tmp_path / "last-before.ckpt" / INDEX).read_text() == "index"


def test_it_leads_to_a_folder_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step=3.ckpt"
    folder.mkdir(parents=True)
    (folder / INDEX).write_text("index")
    point_to(folder)
    assert newest_checkpoint(tmp_path) == folder
    assert (folder.parent / LAST / INDEX).read_text() == "index"


@pytest.mark.parametrize("hard_links", [True, False])
def test_without_symbolic_links_it_is_a_name_or_a_copy_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as exFAT and some network shares do

    monkeypatch.setattr(Path, "symlink_to", refuse)
    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2, 2):
        point_to(written(tmp_path, step) if step_of_newest(tmp_path) < step else tmp_path / "step=2.ckpt")
        assert step_of(tmp_path / LAST) == step
    assert (tmp_path / LAST).samefile(tmp_path / "step=2.ckpt") is hard_links
    assert not list(tmp_path.glob(".*"))


def step_of_newest(folder: Path) -> int:
    return max((step_of(path) for path in folder.glob("*.ckpt")), default=0)


def test_resuming_reads_what_the_pointer_leads_to_once_and_under_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    first, second = written(folder, 9), written(folder, 10)
    point_to(second)
    assert newest_intact_checkpoint(tmp_path) == second
    second.write_bytes(second.read_bytes()[:-300])
    assert newest_intact_checkpoint(tmp_path) == first


def test_of_files_of_one_moment_the_pointer_and_then_the_step_tell_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    paths = [written(folder, step) for step in (9, 10, 11)]
    for path in paths:
        os.utime(path, (1000, 1000))
    assert newest_checkpoint(tmp_path) == paths[2]
    point_to(paths[1])
    assert newest_checkpoint(tmp_path) == paths[1]
    paths[1].unlink()  # dangling: by somebody else's hand
    assert newest_checkpoint(tmp_path) == paths[2]


def test_a_copied_run_folder_in_which_the_link_became_a_file_is_resumed(tmp_path: Path) -> None:
    point_to(written(tmp_path / "checkpoints", 2))
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "copy" / "checkpoints")
    newest = newest_intact_checkpoint(tmp_path / "copy")
    assert newest is not None and step_of(newest) == 2
