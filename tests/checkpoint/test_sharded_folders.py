"""Sharded checkpoints as folders: damage is named, nothing is executed, no kill leaves half of one."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from onn_lightning.checkpoint import folders
from onn_lightning.checkpoint.complete import is_complete, newest_intact_checkpoint
from onn_lightning.checkpoint.reading import CheckpointError, load
from onn_lightning.checkpoint.shard_index import INDEX, PLAIN_DATA, checksum, damage_in_folder
from onn_lightning.checkpoint.sharded import TensorsOnDemand, divide, memory_of, outline
from onn_lightning.checkpoint.sharded_saving import save_divided, save_sharded
from onn_lightning.checkpoint.writing import write

SHARD = "shard-00000.safetensors"


def make_checkpoint(step: int = 1) -> dict[str, Any]:
    """Tensors of several types and none, tied ones, and plain data."""
    table = torch.arange(12.0).reshape(4, 3) * step
    return {
        "global_step": step,
        "state_dict": {
            "a.table": table,
            "b.table": table.detach(),
            "flag": torch.tensor(True),
            "half": torch.ones(3, dtype=torch.bfloat16),
            "none": torch.empty(0, 3),
        },
        "optimizer_states": [
            {
                "state": {1: {"step": torch.tensor(3.0), "exp_avg": table + 1, "note": None}},
                "param_groups": [{"params": [0, 1], "lr": 0.1}],
            }
        ],
        "callbacks": {"C": {"seen": torch.tensor([1, 2])}},
    }


def save(folder: Path, name: str = "step=1.ckpt", step: int = 1) -> Path:
    path = folder / "checkpoints" / name
    save_sharded(make_checkpoint(step), path)
    return path


def flip(file: Path, content: bytes | None = None) -> None:
    """Change one byte: the last of some content, or the file's last."""
    data = bytearray(file.read_bytes())
    place = len(data) - 1 if content is None else data.index(content) + len(content) - 1
    data[place] ^= 1
    file.write_bytes(data)


def test_a_folder_brings_back_what_was_saved(tmp_path: Path) -> None:
    path, expected = save(tmp_path), make_checkpoint()
    got = load(path)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert got["state_dict"]["a.table"] is got["state_dict"]["b.table"]
    assert is_complete(path) and newest_intact_checkpoint(tmp_path) == path
    assert sorted(file.name for file in path.iterdir()) == [INDEX, SHARD, PLAIN_DATA]


def test_a_file_and_a_folder_take_the_place_of_each_other(tmp_path: Path) -> None:
    path = save(tmp_path)
    write({**make_checkpoint(), "global_step": 2}, path)
    assert path.is_file() and load(path)["global_step"] == 2
    save(tmp_path, step=3)
    assert path.is_dir() and load(path)["global_step"] == 3
    assert list(path.parent.iterdir()) == [path]


def test_tensors_can_be_read_one_by_one(tmp_path: Path) -> None:
    got, expected = load(save(tmp_path), mmap=True), make_checkpoint()
    weights = got["state_dict"]
    assert isinstance(weights, TensorsOnDemand)
    assert {name: tuple(t.shape) for name, t in outline(weights).items()} == {
        name: tuple(t.shape) for name, t in expected["state_dict"].items()
    }
    assert len({memory_of(tensor) for tensor in outline(weights).values()}) == 4  # one is tied
    torch.testing.assert_close(dict(weights), expected["state_dict"], rtol=0, atol=0)
    state = got["optimizer_states"][0]["state"][1]
    torch.testing.assert_close(dict(state), expected["optimizer_states"][0]["state"][1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: flip(path / SHARD, torch.arange(12.0).numpy().tobytes()), "a.table in shard-00000"),
        (lambda path: flip(path / SHARD, b'half"'), "the header of shard-00000"),
        (lambda path: os.truncate(path / SHARD, 500), "shard-00000"),
        (lambda path: os.truncate(path / SHARD, 3), "shard-00000"),
        (lambda path: (path / SHARD).unlink(), "shard-00000"),
        (lambda path: flip(path / PLAIN_DATA), PLAIN_DATA),
        (lambda path: (path / PLAIN_DATA).unlink(), PLAIN_DATA),
        (lambda path: flip(path / INDEX, b'"F3'), INDEX),
        (lambda path: os.truncate(path / INDEX, 100), INDEX),
    ],
)
def test_damage_is_named_and_an_older_checkpoint_taken(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    older, path = save(tmp_path), save(tmp_path, "step=2.ckpt")
    os.utime(older, (1, 1))
    damage(path)
    with pytest.raises(CheckpointError, match=named):
        load(path)
    assert newest_intact_checkpoint(tmp_path) == older


def test_several_readers_together_find_what_one_finds(tmp_path: Path) -> None:
    path = save(tmp_path)
    flip(path / SHARD)
    assert [damage_in_folder(path, reader, 2) is None for reader in range(2)] == [False, True]


def test_a_save_that_is_given_up_leaves_what_was_there(tmp_path: Path) -> None:
    path, stop = save(tmp_path), threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        save_divided(divide(make_checkpoint(2)), path, None, stop)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert load(path)["global_step"] == 1


class Canary:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_nothing_in_a_folder_is_executed(tmp_path: Path) -> None:
    path, canary = save(tmp_path), tmp_path / "executed"
    torch.save(Canary(canary), path / PLAIN_DATA)
    whole = json.loads((path / INDEX).read_bytes())
    whole["content"]["plain_crc32"] = checksum(path / PLAIN_DATA)
    content = json.dumps(whole["content"], sort_keys=True, separators=(",", ":")).encode()
    (path / "content").write_bytes(content)
    whole["crc32"] = checksum(path / "content")
    (path / INDEX).write_text(json.dumps(whole))
    assert damage_in_folder(path) is None
    with pytest.raises(CheckpointError, match="more than tensors and plain data"):
        load(path)
    assert not canary.exists()


def test_a_folder_with_torchs_own_index_is_not_read(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    for name in (".metadata", "meta.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CheckpointError, match="pickle, which is not read"):
        load(tmp_path)
    assert not canary.exists() and not is_complete(tmp_path)


def test_an_index_names_no_file_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path)
    whole = json.loads((path / INDEX).read_bytes())
    whole["content"]["tensors"]["state_dict.half"]["parts"][0]["file"] = "../secret"
    content = json.dumps(whole["content"], sort_keys=True, separators=(",", ":")).encode()
    (path / "content").write_bytes(content)
    whole["crc32"] = checksum(path / "content")
    (path / INDEX).write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match="not one in the folder"):
        load(path)


# ---- kills ---------------------------------------------------------------------------------------------


def kill_at_every_change(rank: int, folder: str) -> None:
    """Save over a checkpoint in children, each killed before another renaming or removal."""
    moments = 0
    while not os.WIFEXITED(_killed_child(Path(folder), moments)):
        newest = newest_intact_checkpoint(Path(folder))
        assert newest is not None, moments
        assert load(newest)["global_step"] in (1, 2), moments
        moments += 1
    assert moments >= 4
    path = save(Path(folder), "step=1.ckpt", step=3)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert load(path)["global_step"] == 3


def _killed_child(folder: Path, moment: int) -> int:
    child = os.fork()
    if child == 0:
        left = [moment]

        def then(function: Callable[..., Any]) -> Callable[..., Any]:
            def killing(*arguments: Any, **options: Any) -> Any:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return function(*arguments, **options)

            return killing

        Path.rename = then(Path.rename)  # type: ignore[method-assign]
        folders.shutil.rmtree = then(folders.shutil.rmtree)  # type: ignore[attr-defined]
        save(folder, "step=1.ckpt", step=2)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.slow
def test_a_kill_at_any_change_of_names_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    save(tmp_path)
    run_ranks(kill_at_every_change, str(tmp_path), count=1)
