"""Checkpoints of before parameters of one element had a dimension: loaded, resumed and reshaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from monitored import MODALITIES, PARTS, TRUNK
from ranks import run_ranks
from torch.utils.data import DataLoader

from onn_lightning import OmniModule
from onn_lightning.checkpoint import description, writing
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.optim.state_keys import keys_of
from onn_lightning.reshaping import reshape_checkpoint, widen

SCALARS = ("positions.gain", "heads.text.logit_scale")


def run(folder: Path, steps: int, start: Path | None = None, **settings: Any) -> Path:
    """Train up to a step; the checkpoint of the end."""
    torch.manual_seed(0)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    module = OmniModule(TRUNK, MODALITIES, optimizer=momentum, warmup_steps=1)
    trainer.fit(module, DataLoader(PARTS * 2, batch_size=None), ckpt_path=start, weights_only=True)
    file = folder / f"{steps}.ckpt"
    trainer.save_checkpoint(file)
    return file


def momentum(groups: Any) -> torch.optim.Optimizer:
    """An optimizer whose state is of the same shapes, and in which rounding stays small."""
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def as_of_before(file: Path) -> dict[str, Any]:
    """The checkpoint that an older version would have written."""
    checkpoint = description.read(file)
    (saved,) = checkpoint["optimizer_states"]
    module = OmniModule(TRUNK, MODALITIES)
    kind = keys_of(saved["param_groups"], module)
    assert kind is not None
    keys = kind(module, [group["name"] for group in saved["param_groups"]])
    for name in SCALARS:
        checkpoint["state_dict"][name] = checkpoint["state_dict"][name].squeeze(0)
        entry = saved["state"][keys[name]]
        assert entry["momentum_buffer"].shape == (1,)
        saved["state"][keys[name]] = {key: value.squeeze() for key, value in entry.items()}
    return checkpoint


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An older checkpoint of step 3; in the same folder, that of step 5 of the same run."""
    folder = tmp_path_factory.mktemp("older")
    run(folder, 5, run(folder, 3))
    writing.write(as_of_before(folder / "3.ckpt"), folder / "older.ckpt")
    return folder / "older.ckpt"


def test_it_is_resumed_as_todays_would_be(older: Path, tmp_path: Path) -> None:
    expected, got = description.read(older.with_name("5.ckpt")), description.read(run(tmp_path, 5, older))
    for name, value in expected["state_dict"].items():
        assert torch.equal(got["state_dict"][name], value), name


def resume_sharded(rank: int, start: Path, folder: Path) -> None:
    """Both ranks read the same batches."""
    strategy = FSDP2Strategy(2, save_distributed_checkpoint=False)
    run(folder, 5, start, strategy=strategy, devices=2, use_distributed_sampler=False)


@pytest.mark.slow
def test_it_is_resumed_by_a_sharded_run(older: Path, tmp_path: Path) -> None:
    run_ranks(resume_sharded, older, tmp_path)
    expected, got = description.read(older.with_name("5.ckpt")), description.read(tmp_path / "5.ckpt")
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(got["state_dict"][name], value, rtol=1e-4, atol=1e-5)


def test_it_is_loaded_and_reshaped(older: Path) -> None:
    kept = description.read(older.with_name("3.ckpt"))["state_dict"]
    module = OmniModule.load_from_checkpoint(older, modalities=MODALITIES)
    checkpoint = description.read(older)
    wider = reshape_checkpoint(checkpoint, widen(TRUNK, {0: 32, 1: 40}), MODALITIES)
    for name in SCALARS:
        assert torch.equal(module.get_parameter(name), kept[name])
        assert torch.equal(wider["state_dict"][name], kept[name])
        assert checkpoint["state_dict"][name].ndim == 0
