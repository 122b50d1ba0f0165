"""Growth in mid-run with sharded weights (FSDP2): two real processes, sharded checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from growing_runs import at_once, fit, logged, module_of
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from ranks import run_ranks
from torch.distributed.tensor import DTensor

from onn_lightning.callbacks import GrowOnPlateau
from onn_lightning.checkpoint import description
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping.rebuild import fit_growing

PROCESSES = 2


def grow(rank: int, folder: str) -> None:
    """Train 8 steps, growing at step 3, in process `rank`: with sharded weights, then with whole ones."""

    def run(name: str, make_strategy: Callable[[], Strategy]) -> Trainer:
        def once(trunk: TrunkConfig | None, file: Path | None) -> Trainer:
            callback = GrowOnPlateau(at_once(), max_growths=1, check_every_n_steps=1)
            strategy = {"strategy": make_strategy(), "devices": PROCESSES}
            return fit(Path(folder, name), trunk, file, [callback], **strategy)

        return fit_growing(once)

    sharded = run("sharded", lambda: FSDP2Strategy(PROCESSES))
    first = module_of(sharded).trunk.get_parameter("blocks.0.moie.up.mu_weight")
    assert isinstance(first, DTensor) and first.shape == (64, 16)
    assert first.to_local().shape == (64 // PROCESSES, 16)
    run("whole", DDPStrategy)


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
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-4)
