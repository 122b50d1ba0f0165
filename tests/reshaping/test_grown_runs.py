"""Runs that go on from a grown checkpoint: under one trainer, under DDP, and sharded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from ranks import run_ranks
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader
from trained_case import (
    MODALITIES,
    OPTIMIZERS,
    made_from,
    optimizer_from,
    outputs,
    some_batch,
    step,
    trained_case,
)

from onn_lightning import OmniModule
from onn_lightning.checkpoint import description, writing
from onn_lightning.distributed import parallelize
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import parameter_groups
from onn_lightning.reshaping import add_blocks, reshape_checkpoint, widen

TRUNK = TrunkConfig(16, 2, 4, 2, intermediate_size=[8, 12])
PROCESSES = 2


class Losses(Callback):
    """The main loss of every step, also left in a file by each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, OmniModule) and pl_module.last_step is not None
        self.seen.append(float(pl_module.last_step.main_loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.seen, self.folder / f"losses_{trainer.global_rank}.pt")


def run(
    trunk: TrunkConfig, folder: Path, steps: int, kind: str, start: Path | None = None, **settings: Any
) -> tuple[OmniModule, list[float]]:
    """Train up to a step, from a checkpoint if one is given, and save `folder/run.ckpt`."""
    torch.manual_seed(0)
    module = OmniModule(trunk, MODALITIES, optimizer=OPTIMIZERS[kind], warmup_steps=1, w_gate=0.0, w_kl=0.0)
    losses = Losses(folder)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[losses],
        **settings,
    )
    trainer.fit(module, DataLoader([some_batch()] * 100, batch_size=None), ckpt_path=start, weights_only=True)
    trainer.save_checkpoint(folder / "run.ckpt")
    return module, losses.seen


def grown(path: Path, output: Path) -> TrunkConfig:
    """Make the run of a checkpoint wider, then deeper."""
    checkpoint = description.read(path)
    trunk, modalities = description.restore(checkpoint, path, trusted_packages=("toy",))
    for plan in (widen(trunk, {0: 20, 1: 20}), add_blocks(widen(trunk, {0: 20, 1: 20}).trunk, 1, 1)):
        checkpoint = reshape_checkpoint(checkpoint, plan, modalities)
        trunk = plan.trunk
    writing.write(checkpoint, output)
    return trunk


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_trainer_goes_on_from_a_grown_checkpoint_where_the_old_run_stood(tmp_path: Path, kind: str) -> None:
    run(TRUNK, tmp_path, 6, kind)
    trunk = grown(tmp_path / "run.ckpt", tmp_path / "grown.ckpt")
    _, expected = run(TRUNK, tmp_path, 7, kind, tmp_path / "run.ckpt")
    module, losses = run(trunk, tmp_path, 30, kind, tmp_path / "grown.ckpt")
    assert module.trunk.config == trunk and len(losses) == 24
    assert losses[0] == pytest.approx(expected[0], rel=1e-5)  # the same at the moment of growth
    assert losses[-1] < 0.95 * losses[0]

    again = description.read(tmp_path / "run.ckpt")  # what the grown run saved, knows what was done
    assert [entry["step"] for entry in description.history(again)] == [6, 6]
    assert again["global_step"] == 30


def go_on_from_grown(rank: int, trunk: TrunkConfig, folder: Path) -> None:
    """One of the processes that train on together."""
    start = folder / "grown.ckpt"
    run(trunk, folder, 6, "adamw", start, devices=PROCESSES, strategy="ddp", use_distributed_sampler=False)


@pytest.mark.slow
def test_data_parallel_processes_go_on_from_a_grown_checkpoint(tmp_path: Path) -> None:
    run(TRUNK, tmp_path, 3, "adamw")
    trunk = grown(tmp_path / "run.ckpt", tmp_path / "grown.ckpt")
    _, alone = run(trunk, tmp_path, 6, "adamw", tmp_path / "grown.ckpt")
    run_ranks(go_on_from_grown, trunk, tmp_path)
    for rank in range(PROCESSES):  # both read the same batch as one process does
        assert torch.load(tmp_path / f"losses_{rank}.pt") == pytest.approx(alone, rel=1e-4)


def sharded(module: OmniModule) -> OmniModule:
    """Shard a module over all processes."""
    parallelize(module, init_device_mesh("cpu", (PROCESSES,), mesh_dim_names=("data_parallel",)))
    return module


FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def shard_grow_and_step(rank: int, folder: str) -> None:
    """Train sharded, grow what was saved, load it sharded, and make one more step."""
    dist.init_process_group("gloo")
    case = trained_case(TRUNK, dtype=torch.float32)
    module = sharded(made_from(case.checkpoint, TRUNK, dtype=torch.float32))
    optimizer = OPTIMIZERS["adamw"](parameter_groups(module))
    for _ in range(2):
        step(module, optimizer, some_batch())
    weights = get_model_state_dict(module, options=FULL)
    state = get_optimizer_state_dict(module, optimizer, options=FULL)

    plans = [widen(TRUNK, {0: 20, 1: 20})]
    plans.append(add_blocks(plans[0].trunk, 1, 1))
    new: dict[str, Any] = {}
    if rank == 0:
        new = {**case.checkpoint, "state_dict": weights, "optimizer_states": [state], "callbacks": {}}
        torch.save(new, Path(folder) / "sharded.pt")
        for plan in plans:
            new = reshape_checkpoint(new, plan, MODALITIES)
    larger = sharded(OmniModule(plans[-1].trunk, MODALITIES))
    larger_optimizer = OPTIMIZERS["adamw"](parameter_groups(larger))
    set_model_state_dict(larger, new.get("state_dict", {}), options=FROM_RANK_0)
    optimizer_state = copy.deepcopy(new["optimizer_states"][0]) if rank == 0 else {}
    set_optimizer_state_dict(larger, larger_optimizer, optimizer_state, options=FROM_RANK_0)
    with torch.no_grad():
        seen = outputs(larger, some_batch())
    step(larger, larger_optimizer, some_batch())
    after = get_model_state_dict(larger, options=FULL)
    if rank == 0:
        torch.save((seen, after), Path(folder) / "stepped.pt")


@pytest.mark.slow
def test_a_grown_checkpoint_loads_into_a_sharded_network_and_steps_as_unsharded(tmp_path: Path) -> None:
    run_ranks(shard_grow_and_step, str(tmp_path))
    seen, stepped = torch.load(tmp_path / "stepped.pt", weights_only=True)
    checkpoint = torch.load(tmp_path / "sharded.pt", weights_only=True)
    before = outputs(made_from(checkpoint, TRUNK, dtype=torch.float32), some_batch())
    torch.testing.assert_close(seen, before, rtol=1e-4, atol=1e-5)  # what it computed before it grew

    for plan in (widen(TRUNK, {0: 20, 1: 20}), add_blocks(widen(TRUNK, {0: 20, 1: 20}).trunk, 1, 1)):
        checkpoint = reshape_checkpoint(checkpoint, plan, MODALITIES)
    alone = made_from(checkpoint, plan.trunk, dtype=torch.float32)
    named = checkpoint["optimizer_states"][0]
    names = [name for group in named["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    by_number = {
        "state": {numbers[name]: entry for name, entry in named["state"].items()},
        "param_groups": [g | {"params": [numbers[n] for n in g["params"]]} for g in named["param_groups"]],
    }
    step(alone, optimizer_from({"optimizer_states": [by_number]}, alone), some_batch())
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(stepped[name], tensor, rtol=1e-4, atol=2e-6)
