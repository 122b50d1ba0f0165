"""Checkpoints: the same module comes back, and nothing in a file is executed on the way."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from toy import ByteText, Patches, pack

from onn_lightning import OmniModule
from onn_lightning.checkpoint import description
from onn_lightning.checkpoint.description import CheckpointError
from onn_lightning.modality import Modality
from onn_lightning.nn import SBLForm, TrunkConfig, YarnScaling

TRUNK = TrunkConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=24,
    rope_theta=1e4,
    yarn=YarnScaling(4.0, original_max_position=64),
    sbl=SBLForm(normalized=False, gate=0.1),
)
MODALITIES = [ByteText(embedding_size=8), Patches(3, columns=4)]
BATCH = pack([[[("patch", [0.1, 0.2, 0.3]), ("text", "abc")]]], MODALITIES)


class Alphabet(ByteText):
    """Depends on a file that travels inside the checkpoint."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.content = Path(path).read_bytes()

    def assets(self) -> dict[str, bytes]:
        return {"alphabet": self.content}

    @classmethod
    def from_assets(cls, init_args: dict[str, Any], assets: dict[str, bytes]) -> Modality:
        instance = cls(**init_args | {"path": os.devnull})
        instance.content = assets["alphabet"]
        return instance


class Opaque(Patches):
    """Made with something a checkpoint cannot hold."""

    def __init__(self, callback: Any) -> None:
        super().__init__()


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[OmniModule, Path]:
    """A module after one step, and the checkpoint that Lightning wrote of it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = OmniModule(TRUNK, MODALITIES, loss_weights={"patch": 0.25}, w_gate=0.5)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader([BATCH], batch_size=None))
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.eval(), folder / "last.ckpt"


def changed(trained: tuple[OmniModule, Path], path: Path, **entries: Any) -> Path:
    """A copy of the checkpoint with entries of its description replaced."""
    checkpoint = torch.load(trained[1], weights_only=True)
    checkpoint[description.KEY] |= entries
    torch.save(checkpoint, path)
    return path


def one_line(error: pytest.ExceptionInfo[CheckpointError], path: Path) -> str:
    """The message: one line that names the file."""
    message = str(error.value)
    assert "\n" not in message and str(path) in message and len(message) < 600
    return message


def test_a_loaded_module_computes_what_the_saved_one_did(trained: tuple[OmniModule, Path]) -> None:
    module, path = trained
    loaded = OmniModule.load_from_checkpoint(path, trusted_packages=("toy",))
    assert not loaded.training and loaded.trunk.config == TRUNK
    with torch.no_grad():
        expected, hidden = module(BATCH).hidden, loaded(BATCH).hidden
    assert torch.equal(hidden, expected)
    assert torch.equal(loaded.heads["text"].logits(hidden), module.heads["text"].logits(expected))
    assert {name: m.init_args for name, m in loaded.modalities.items()} == {
        "text": {"embedding_size": 8},
        "patch": {"patch_dim": 3, "columns": 4, "predicted": True},
    }


def test_weights_of_the_losses_come_back_and_the_head_is_still_tied(trained: tuple[OmniModule, Path]) -> None:
    loaded = OmniModule.load_from_checkpoint(trained[1], trusted_packages=("toy",))
    assert loaded.w_gate == 0.5 and loaded.loss_weights.tolist() == [1.0, 0.25]
    assert loaded.heads["text"].weight is loaded.embedders["text"].character.weight


def test_modalities_handed_in_replace_those_described(trained: tuple[OmniModule, Path]) -> None:
    loaded = OmniModule.load_from_checkpoint(trained[1], modalities=MODALITIES)
    assert loaded.modalities["patch"] is MODALITIES[1]


def test_files_of_a_modality_travel_inside_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "alphabet").write_bytes(b"\x00abc\xff")
    described = description.describe(TRUNK, [Alphabet(str(tmp_path / "alphabet"))])
    torch.save({description.KEY: described, "state_dict": {}}, tmp_path / "c.ckpt")
    (tmp_path / "alphabet").unlink()
    checkpoint = description.read(tmp_path / "c.ckpt")
    _, (again,) = description.restore(checkpoint, "c.ckpt", trusted_packages=(__name__,))
    assert isinstance(again, Alphabet) and again.content == b"\x00abc\xff"


def test_an_argument_that_no_checkpoint_can_hold_is_refused_when_saving() -> None:
    with pytest.raises(TypeError, match=r"Opaque.callback is a function: .* plain data"):
        description.describe(TRUNK, [Opaque(lambda: None)])


def test_paths_and_nested_arguments_are_kept_as_plain_data() -> None:
    described = description.describe(TRUNK, [Opaque({"a": (Path("x") / "y", 1.5, None, True)})])
    assert described["modalities"][0]["init_args"] == {"callback": {"a": ["x/y", 1.5, None, True]}}


def test_code_hidden_in_a_file_is_not_executed(trained: tuple[OmniModule, Path], tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    checkpoint = torch.load(trained[1], weights_only=True) | {"hyper_parameters": Canary(canary)}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Canary(canary)))
    for path in (tmp_path / "evil.ckpt", tmp_path / "plain.ckpt"):
        with pytest.raises(CheckpointError) as error:
            OmniModule.load_from_checkpoint(path, trusted_packages=("toy",))
        assert "take an intact checkpoint" in one_line(error, path)
    assert not canary.exists()


def test_a_class_of_an_unknown_package_is_not_imported(
    trained: tuple[OmniModule, Path], tmp_path: Path
) -> None:
    (tmp_path / "stranger.py").write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    entry = {"class_path": "stranger.Thing", "init_args": {}, "assets": {}}
    path = changed(trained, tmp_path / "c.ckpt", modalities=[entry])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(CheckpointError) as error:
            OmniModule.load_from_checkpoint(path, trusted_packages=("toy",))
    assert "stranger.Thing, from a package that is not trusted" in one_line(error, path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("class_path", "reason"),
    [
        ("onn_lightning_evil.Thing", "not trusted"),
        ("onn_lightning.no_such_module.Thing", "cannot be imported"),
        ("onn_lightning.batch.NoSuchClass", "cannot be imported"),
        ("onn_lightning.batch.Batch", "not a Modality"),
        ("onn_lightning.modality.inspect", "not a Modality"),
        ("Thing", "not trusted"),
    ],
)
def test_only_modalities_of_trusted_packages_are_made(
    trained: tuple[OmniModule, Path], tmp_path: Path, class_path: str, reason: str
) -> None:
    entry = {"class_path": class_path, "init_args": {}, "assets": {}}
    path = changed(trained, tmp_path / "c.ckpt", modalities=[entry])
    with pytest.raises(CheckpointError) as error:
        OmniModule.load_from_checkpoint(path)
    assert reason in one_line(error, path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(trained: tuple[OmniModule, Path], tmp_path: Path, kept: float) -> None:
    content = trained[1].read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError) as error:
        OmniModule.load_from_checkpoint(path)
    one_line(error, path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64) | st.text(max_size=40).map(str.encode))
def test_any_other_file_is_refused_with_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        description.read(path)
    one_line(error, path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            OmniModule.load_from_checkpoint(path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "else.ckpt"
    for content in ({"state_dict": {}}, [1, 2], torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="not a checkpoint of onn_lightning"):
            description.read(path)


def test_a_format_of_the_future_is_refused_with_both_numbers(
    trained: tuple[OmniModule, Path], tmp_path: Path
) -> None:
    path = changed(trained, tmp_path / "c.ckpt", format=99)
    with pytest.raises(CheckpointError) as error:
        OmniModule.load_from_checkpoint(path, modalities=MODALITIES)
    assert "format 99, this version reads 1" in one_line(error, path)


@pytest.mark.parametrize(
    "entries",
    [
        {"trunk": {"hidden_size": 16, "surprise": 1}},
        {"trunk": {"hidden_size": 0, "yarn": None, "sbl": {}}},
        {"trunk": 5},
        {"modalities": [{"class_path": "toy.Patches"}]},
        {"modalities": [{"class_path": "toy.Patches", "init_args": {"colour": 1}, "assets": {}}]},
        {"modalities": None},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(
    trained: tuple[OmniModule, Path], tmp_path: Path, entries: dict[str, Any]
) -> None:
    path = changed(trained, tmp_path / "c.ckpt", **entries)
    with pytest.raises(CheckpointError) as error:
        OmniModule.load_from_checkpoint(path, trusted_packages=("toy",))
    one_line(error, path)


def test_weights_that_do_not_fit_their_description_are_refused(
    trained: tuple[OmniModule, Path], tmp_path: Path
) -> None:
    checkpoint = torch.load(trained[1], weights_only=True)
    del checkpoint["state_dict"]["positions.gain"]
    path = tmp_path / "c.ckpt"
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError) as error:
        OmniModule.load_from_checkpoint(path, trusted_packages=("toy",))
    assert "positions.gain" in one_line(error, path)
