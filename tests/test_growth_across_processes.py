"""Growth in mid-run with sharded weights (FSDP2): two real processes, one full checkpoint.

Notable: FSDP2 cannot shard scalars, so here the gains of tables alone are not averaged over the processes;
hence the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from growing_runs import at_once, fit, logged, module_of
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from ranks import run_ranks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from onn_lightning import OmniModule
from onn_lightning.callbacks import GrowOnPlateau
from onn_lightning.checkpoint import description
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping.rebuild import fit_growing

PROCESSES = 2


class Sharded(OmniModule):
    """The module with every block and the rest sharded over all processes."""

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        scalars = {parameter for parameter in self.parameters() if parameter.ndim == 0}  # cannot be sharded
        for block in self.trunk.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=False)
        fully_shard(self, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)


def grow(rank: int, folder: str) -> None:
    """Train 8 steps, growing at step 3, in process `rank`: with sharded weights, then with whole ones."""

    def run(name: str, module_class: type[OmniModule], make_strategy: Callable[[], Any]) -> Trainer:
        def once(trunk: TrunkConfig | None, file: Path | None) -> Trainer:
            callback = GrowOnPlateau(at_once(), max_growths=1, check_every_n_steps=1)
            strategy = {"strategy": make_strategy(), "devices": PROCESSES}
            return fit(Path(folder, name), trunk, file, [callback], module_class=module_class, **strategy)

        return fit_growing(once)

    sharded = run(
        "sharded",
        Sharded,
        lambda: ModelParallelStrategy(
            data_parallel_size=PROCESSES, tensor_parallel_size=1, save_distributed_checkpoint=False
        ),
    )
    first = module_of(sharded).trunk.get_parameter("blocks.0.moie.up.mu_weight")
    assert isinstance(first, DTensor) and first.shape == (64, 16)
    assert first.to_local().shape == (64 // PROCESSES, 16)
    run("whole", OmniModule, DDPStrategy)


@pytest.mark.slow
def test_a_sharded_run_grows_as_one_with_whole_weights(tmp_path: Path) -> None:
    run_ranks(grow, str(tmp_path))
    for name in ("sharded", "whole"):
        last = description.read(tmp_path / name / "checkpoints/last.ckpt")
        assert last["global_step"] == 8
        assert [entry["step"] for entry in description.history(last)] == [3]
        assert last["state_dict"]["trunk.blocks.0.moie.up.mu_weight"].shape == (64, 16)
        moments = [entry["exp_avg"].shape for entry in last["optimizer_states"][0]["state"].values()]
        assert torch.Size((64, 16)) in moments
    losses = [logged(tmp_path / name, "train/main_loss") for name in ("sharded", "whole")]
    assert sorted(losses[0]) == sorted(losses[1]) == list(range(8))
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-3)
