"""Export: safetensors and plain files out of either form of checkpoint, and the same logits from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from toy import ByteText, Patches, pack

from onn_lightning import OmniModule
from onn_lightning.checkpoint import description, writing
from onn_lightning.checkpoint.exported import export
from onn_lightning.checkpoint.reading import CheckpointError
from onn_lightning.checkpoint.sharded_saving import save_sharded
from onn_lightning.modality import Modality
from onn_lightning.nn import TrunkConfig

TRUNK = TrunkConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24)
TRUSTED = ("test_exported", "toy")


class Letters(ByteText):
    """Text that depends on a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.content = Path(path).read_bytes()

    def assets(self) -> dict[str, bytes]:
        return {"letters.txt": self.content}

    @classmethod
    def from_assets(cls, init_args: dict[str, Any], assets: dict[str, bytes]) -> Modality:
        instance = cls(**init_args | {"path": os.devnull})
        instance.content = assets["letters.txt"]
        return instance


def checkpoint_of(tmp_path: Path) -> tuple[OmniModule, dict[str, Any]]:
    (tmp_path / "letters.txt").write_text("字母", encoding="utf-8")
    torch.manual_seed(1)
    module = OmniModule(TRUNK, [Letters(str(tmp_path / "letters.txt")), Patches()]).eval()
    module.history = [{"step": 3, "what": "grown", "trunk": {}}]
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "global_step": 7,
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"params": [0], "lr": 0.1}]}
        ],
    }
    module.on_save_checkpoint(checkpoint)
    return module, checkpoint


def save(tmp_path: Path, form: str) -> tuple[OmniModule, Path]:
    module, checkpoint = checkpoint_of(tmp_path)
    path = tmp_path / "step=7.ckpt"
    (save_sharded if form == "sharded" else writing.write)(checkpoint, path)
    return module, path


def logits(module: OmniModule) -> dict[str, torch.Tensor]:
    batch = pack([[[("patch", [0.1, 0.2, 0.3]), ("text", "abc")]]], list(module.modalities.values()))
    with torch.no_grad():
        outputs = module.predict_targets(batch, module(batch).hidden)
    return {name: output.loss for name, output in outputs.items()}


@pytest.mark.parametrize("form", ["one file", "sharded"])
def test_an_export_gives_the_same_numbers_bit_for_bit(tmp_path: Path, form: str) -> None:
    module, path = save(tmp_path, form)
    made = export(path, tmp_path / "out", 5e9)
    back = OmniModule.load_from_checkpoint(tmp_path / "out", trusted_packages=TRUSTED)
    torch.testing.assert_close(logits(back), logits(module), rtol=0, atol=0)
    assert back.history == module.history
    text = back.modalities["text"]
    assert isinstance(text, Letters) and text.content.decode() == "字母"
    stored = load_file(tmp_path / "out" / "model.safetensors")  # as others read it
    assert made.tensors == len(stored) == len(module.state_dict()) - 1  # the head's table is the embedder's
    assert all(torch.equal(stored[name], module.state_dict()[name]) for name in stored)
    assert (tmp_path / "out/assets/0-Letters/letters.txt").read_text(encoding="utf-8") == "字母"
    left = [str(file) for file in tmp_path.rglob("*") if ".partial" in file.name]
    assert not left


def test_large_weights_go_into_several_files_with_an_index(tmp_path: Path) -> None:
    module, path = save(tmp_path, "sharded")
    made = export(path, tmp_path / "out", 8000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values())) and made.files == len(files) > 2
    assert index["metadata"]["total_size"] == made.num_bytes
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, framework="pt") as opened:
            assert torch.equal(opened.get_tensor(name), module.state_dict()[name])
    back = OmniModule.load_from_checkpoint(tmp_path / "out", trusted_packages=TRUSTED)
    torch.testing.assert_close(logits(back), logits(module), rtol=0, atol=0)


def test_matrices_alone_are_rounded(tmp_path: Path) -> None:
    module, path = save(tmp_path, "one file")
    export(path, tmp_path / "out", 5e9, torch.bfloat16)
    for name, tensor in load_file(tmp_path / "out/model.safetensors").items():
        own = module.state_dict()[name]
        expected = own.bfloat16() if own.ndim >= 2 else own
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)
    back = OmniModule.load_from_checkpoint(tmp_path / "out", trusted_packages=TRUSTED)
    assert back.trunk.blocks[0].moie.up.mu_weight.dtype == torch.float32


def test_damage_before_and_after_is_named(tmp_path: Path) -> None:
    _, path = save(tmp_path, "sharded")
    export(path, tmp_path / "out", 5e9)
    for file, there in (
        (tmp_path / "out/model.safetensors", True),
        (path / "shard-00000.safetensors", False),
    ):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"the tensor .* is not what was written"):
            if there:
                description.read(tmp_path / "out")
            else:
                export(path, tmp_path / "second", 5e9)
    assert not (tmp_path / "second").exists()


def test_an_export_names_no_file_elsewhere_and_replaces_nothing(tmp_path: Path) -> None:
    _, path = save(tmp_path, "one file")
    export(path, tmp_path / "out", 5e9)
    with pytest.raises(FileExistsError, match="give another name"):
        export(path, tmp_path / "out", 5e9)
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["onn_lightning"]["modalities"][0]["assets"]["letters.txt"] = "../letters.txt"
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not in it"):
        description.read(tmp_path / "out")


def test_classes_of_an_export_must_be_trusted(tmp_path: Path) -> None:
    _, path = save(tmp_path, "one file")
    export(path, tmp_path / "out", 5e9)
    with pytest.raises(CheckpointError, match="not trusted"):
        OmniModule.load_from_checkpoint(tmp_path / "out")
