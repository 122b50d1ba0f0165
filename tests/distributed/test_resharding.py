"""Sharded checkpoints under other numbers of ranks and other strategies: the same run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from ranks import run_ranks
from sharded_runs import BROKEN_AT, STEPS, train

from onn_lightning.distributed import FSDP2Strategy


def save(rank: int, folder: str, world_size: int) -> None:
    """An unbroken run that saves on its way, with shards, and one that saves in one file."""
    root = Path(folder)
    watch, _ = train(root, world_size, FSDP2Strategy(world_size), save_to=root / f"{world_size}.ckpt")
    if rank == 0:
        torch.save(watch.losses, root / f"{world_size}.losses")
    if world_size == 2:
        one_file = FSDP2Strategy(world_size, save_distributed_checkpoint=False)
        train(root, world_size, one_file, save_to=root / "file.ckpt")
        train(root, world_size, DDPStrategy(), save_to=root / "ddp.ckpt")
    if world_size == 4:
        train(root, world_size, FSDP2Strategy(2, tensor_parallel_size=2), save_to=root / "tensor.ckpt")


def go_on(rank: int, folder: str, world_size: int, names: list[str]) -> None:
    """Go on from checkpoints, with sharded weights and with whole ones."""
    root = Path(folder)
    expected_losses = torch.load(root / "1.losses", weights_only=True)[BROKEN_AT:]
    for name in names:
        expected = torch.load(root / f"{name}.expected", weights_only=True)
        strategies: list[Any] = [FSDP2Strategy(world_size)]
        if world_size == 2:
            strategies.append(DDPStrategy())
        if world_size == 4:
            strategies.append(FSDP2Strategy(2, tensor_parallel_size=2))
        for strategy in strategies:
            watch, trainer = train(root, world_size, strategy, checkpoint=root / f"{name}.ckpt")
            where = f"{name} under {type(strategy).__name__} of {world_size}"
            torch.testing.assert_close(
                watch.began_with, expected, rtol=0, atol=0, msg=lambda text, w=where: f"{w}: {text}"
            )
            assert watch.losses == pytest.approx(expected_losses, rel=1e-5), where
            assert trainer.global_step == STEPS, where


@pytest.mark.slow
def test_a_run_goes_on_the_same_under_any_number_of_ranks_and_either_strategy(tmp_path: Path) -> None:
    for world_size in (1, 2, 4):
        run_ranks(save, str(tmp_path), world_size, count=world_size)
    losses = [torch.load(tmp_path / f"{count}.losses", weights_only=True) for count in (1, 2, 4)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    for world_size in (1, 2, 4):
        names = ["1", "2", "4", *(["file", "ddp", "tensor"] if world_size == 2 else [])]
        run_ranks(go_on, str(tmp_path), world_size, names, count=world_size)
