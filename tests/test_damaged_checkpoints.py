"""A flipped byte in a checkpoint is noticed, the tensor is named, and an older checkpoint is taken."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from onn_lightning.callbacks.durable_io import DurableCheckpointIO
from onn_lightning.checkpoint import reading, writing
from onn_lightning.checkpoint.complete import newest_checkpoint, newest_intact_checkpoint
from onn_lightning.checkpoint.reading import CheckpointError


def some_checkpoint() -> dict[str, Any]:
    shared = torch.arange(6.0)
    weights = {"first": shared, "tied": shared, "part": shared[2:], "none": torch.zeros(0)}
    state = {
        0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)},
        1: [torch.ones(4), (torch.ones(5),)],
    }
    return {"state_dict": OrderedDict(weights), "optimizer_states": [{"state": state}], "note": "plain data"}


def flip(path: Path, record: str) -> None:
    """Change one bit in the middle of a record."""
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith(f"/{record}"))
        content = archive.read(entry)
    whole = bytearray(path.read_bytes())
    whole[whole.find(content, entry.header_offset) + len(content) // 2] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "state_dict.first"),
        (2, "optimizer_states.0.state.0.step"),
        (3, "optimizer_states.0.state.0.exp_avg"),
        (5, "optimizer_states.0.state.1.1.0"),
    ],
)
def test_the_tensor_of_a_flipped_byte_is_named(tmp_path: Path, number: int, name: str) -> None:
    path = tmp_path / "a.ckpt"
    writing.write(some_checkpoint(), path)
    assert torch.equal(reading.load(path)["state_dict"]["part"], torch.arange(2.0, 6.0))
    flip(path, f"data/{number}")
    torch.load(path, weights_only=True)  # torch itself does not notice
    for load in (reading.load, DurableCheckpointIO().load_checkpoint):
        with pytest.raises(CheckpointError) as error:
            load(path)
        assert f"{path}: damaged, the tensor {name} is not what was written" in str(error.value)


def test_a_flipped_byte_in_plain_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    writing.write(some_checkpoint(), path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"plain data", b"plane data"))
    with pytest.raises(CheckpointError, match="its plain data is not what was written"):
        reading.load(path)


def test_files_that_torch_wrote_by_itself_are_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(some_checkpoint(), path)
    assert reading.load(path)["note"] == "plain data"
    flip(path, "data/4")
    with pytest.raises(CheckpointError, match=r"the tensor optimizer_states\.0\.state\.1\.0 is"):
        reading.load(path)


def test_the_newest_intact_checkpoint_is_found(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    paths = [tmp_path / "checkpoints" / name for name in ("step=1.ckpt", "step=2.ckpt", "last.ckpt")]
    for age, path in enumerate(reversed(paths)):
        writing.write(some_checkpoint(), path)
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_intact_checkpoint(tmp_path) == paths[2]
    for place in (2, 1):
        flip(paths[place], "data/0")
        os.utime(paths[place], (998 + place, 998 + place))
        assert newest_checkpoint(tmp_path) == paths[2]
        assert newest_intact_checkpoint(tmp_path) == paths[place - 1]
    flip(paths[0], "data/0")
    assert newest_intact_checkpoint(tmp_path) is None


def test_reading_cannot_be_asked_to_trust_a_file(tmp_path: Path) -> None:
    plugin = DurableCheckpointIO()
    plugin.save_checkpoint({"number": 1}, tmp_path / "new" / "a.ckpt")
    assert plugin.load_checkpoint(tmp_path / "new/a.ckpt", weights_only=True) == {"number": 1}
    with pytest.raises(CheckpointError, match="would run whatever code is in the file"):
        plugin.load_checkpoint(tmp_path / "new/a.ckpt", weights_only=False)
    with pytest.raises(CheckpointError, match="not to addresses"):
        plugin.save_checkpoint({}, "s3://bucket/a.ckpt")
    for _ in range(2):
        plugin.remove_checkpoint(tmp_path / "new/a.ckpt")
    assert not list((tmp_path / "new").iterdir())
