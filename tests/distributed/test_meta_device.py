"""A network built on the meta device: the values of one built at once, and no rank holds the whole of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import MODALITIES, PARTS, TRUNK, moving, watch
from ranks import run_ranks
from torch import nn
from torch.distributed.tensor import DTensor
from toy import Patches

from onn_lightning import OmniModule
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.nn import TrunkConfig

LARGE = TrunkConfig(hidden_size=384, num_layers=12, num_heads=6)
"""Twelve blocks of 14 MB each."""


def built(trunk: TrunkConfig = TRUNK, device: str = "cpu") -> OmniModule:
    torch.manual_seed(3)
    with torch.device(device):
        return OmniModule(trunk, MODALITIES, optimizer=moving)


def assert_same_values(module: OmniModule, expected: OmniModule) -> None:
    tensors = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
    for name, value in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        assert torch.equal(whole, tensors.pop(name)), name
    assert not tensors


class Scaled(Patches):
    """A modality whose head has a parameter without a dimension."""

    def build_head(self, hidden_size: int) -> nn.Module:
        head = super().build_head(hidden_size)
        assert head is not None
        head.scale = nn.Parameter(torch.tensor(1.0))
        return head


def trainer_of(folder: Path, **settings: object) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        max_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,  # type: ignore[arg-type]
    )


def test_in_one_process_it_has_the_bits_of_one_built_at_once(tmp_path: Path) -> None:
    expected, module = built(), built(device="meta")
    assert all(parameter.is_meta for parameter in module.parameters())
    torch.rand(7)  # what is drawn in between makes no difference
    trainer_of(tmp_path).fit(module, torch.utils.data.DataLoader(PARTS, batch_size=None))
    assert_same_values(module, expected)
    assert module.heads["text"].weight is module.embedders["text"].character.weight


def high_water_mark() -> int:
    """Peak resident memory of this process in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def shard(rank: int, folder: str) -> None:
    """Shard a large network that was built without memory; train a small one; refuse one that cannot be."""
    whole = sum(parameter.numel() * 4 for parameter in built(LARGE, "meta").parameters())
    trainer = trainer_of(Path(folder), strategy=FSDP2Strategy(2), devices=2)
    torch.manual_seed(3 + rank)  # all begin with what rank 0 draws
    with trainer.init_module(empty_init=True):
        module = OmniModule(LARGE, MODALITIES, optimizer=moving)
    trainer.fit(built(device="meta"), torch.utils.data.DataLoader(PARTS, batch_size=None))  # warm
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    trainer = trainer_of(Path(folder), strategy=FSDP2Strategy(2), devices=2)
    trainer.fit(module, torch.utils.data.DataLoader(PARTS, batch_size=None))
    grown = high_water_mark() - before
    block = sum(parameter.numel() * 4 for parameter in module.trunk.blocks[0].parameters())
    assert grown < whole / 2 + 3 * block, (grown / whole, block / whole)
    assert_same_values(module, built(LARGE))
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert parameter.to_local().numel() <= -(-parameter.shape[0] // 2) * parameter[0].numel(), name

    small = built(device="meta")
    watch(PARTS, Path(folder), small, devices=2, strategy=FSDP2Strategy(2))
    watch(PARTS, Path(folder), small, devices=2, strategy=FSDP2Strategy(2))  # once sharded, it stays so
    with pytest.raises(MisconfigurationException, match=r"heads\.patch\.scale.*nn\.Parameter\(torch\.ones"):
        scaled = OmniModule(TRUNK, [MODALITIES[0], Scaled()])
        trainer_of(Path(folder), strategy=FSDP2Strategy(2), devices=2).fit(
            scaled, torch.utils.data.DataLoader(PARTS, batch_size=None)
        )


@pytest.mark.slow
def test_two_ranks_hold_half_of_it_each_and_never_the_whole(tmp_path: Path) -> None:
    run_ranks(shard, str(tmp_path))


def test_sizes_that_are_not_those_of_the_run_are_named(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, strategy=FSDP2Strategy(8), devices=1)
    with pytest.raises(MisconfigurationException, match=r"8 x tensor_parallel_size 1 is 8.*has 1 ranks"):
        trainer.fit(built(), torch.utils.data.DataLoader(PARTS, batch_size=None))
    with pytest.raises(ValueError, match="at least 1"):
        FSDP2Strategy(0)
