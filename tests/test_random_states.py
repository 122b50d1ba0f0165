"""Random generators of every rank go on where they were: a resumed run is the unbroken one, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from ranks import run_ranks
from saved_runs import Fails, Weights, train

from onn_lightning.callbacks import RandomStates, RunCheckpoint
from onn_lightning.checkpoint import reading


def draw() -> tuple[float, float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand()), float(np.random.randn())


def start(callback: RandomStates, rank: int) -> None:
    callback.on_train_start(cast(Trainer, SimpleNamespace(global_rank=rank)), cast(LightningModule, None))


def test_all_generators_go_on_from_a_file_that_executes_nothing(tmp_path: Path) -> None:
    random.gauss(0, 1), np.random.randn()  # each leaves a second number for the next time
    torch.save(RandomStates().state_dict(), tmp_path / "states.pt")
    expected = [random.gauss(0, 1), *draw()]
    resumed = RandomStates()
    resumed.load_state_dict(reading.load(tmp_path / "states.pt"))
    draw()
    start(resumed, rank=0)
    assert [random.gauss(0, 1), *draw()] == expected


def test_a_rank_that_is_new_keeps_what_its_seed_gave_it() -> None:
    resumed = RandomStates()
    resumed.load_state_dict(RandomStates().state_dict())
    torch.manual_seed(5)
    expected = draw()
    torch.manual_seed(5)
    random.seed(1), np.random.seed(1)
    state = draw()
    torch.manual_seed(5)
    random.seed(1), np.random.seed(1)
    start(resumed, rank=1)
    assert draw() == state and state[0] == expected[0]


def interrupted_and_resumed(rank: int, folder: str) -> None:
    """Six steps at once; three, a failure, and the other three with other seeds; on each rank alike."""

    def run(name: str, *callbacks: Any, **settings: Any) -> dict[str, torch.Tensor]:
        weights = Weights()
        saving = RunCheckpoint(every_n_train_steps=2)
        strategy = DDPStrategy(process_group_backend="gloo")
        train(Path(folder, name), weights, *callbacks, saving, strategy=strategy, devices=2, **settings)
        return weights.after[6]

    unbroken = run("unbroken")
    with pytest.raises(RuntimeError, match="after which it fails"):
        run("broken", Fails(3))
    resumed = run("broken", resume=Path(folder, "broken/checkpoints/last.ckpt"), seeds=(7, 8))
    for name, value in unbroken.items():
        assert torch.equal(resumed[name], value), name
    drawn: list[Any] = [None, None]
    dist.all_gather_object(drawn, draw())
    assert drawn[0] != drawn[1]  # they did not share one state


def test_two_ranks_go_on_as_an_unbroken_run(tmp_path: Path) -> None:
    run_ranks(interrupted_and_resumed, str(tmp_path))
    for name in ("unbroken", "broken"):
        last = reading.load(tmp_path / name / "checkpoints/last.ckpt")
        assert last["global_step"] == 6
        assert len(last["callbacks"]["RandomStates"]["by_rank"]) == 2
        place = last["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        assert place["replicas"] == len(place["places"]) == 2
