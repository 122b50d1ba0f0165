"""One rank with the whole batch and two with unequal parts of it train alike, in float64: DDP and FSDP2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from monitored import RankPart, batch_of, make_module, watch
from ranks import run_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import GradientCheckpointing
from onn_lightning.distributed import FSDP2Strategy

PATCHES = [0.1, -0.4, 0.3, 1.0, 0.2, -0.1, 0.7, 0.0, -0.6]
ROWS: list[
    list[list[Any]]
] = [  # of two steps, and of each rank in them: the targets of neither modality are equally many
    [[[[("patch", PATCHES), ("text", "abcdefg")]]], [[[("text", "xy")]], [[("text", "z")]]]],
    [[[[("text", "no")]]], [[[("patch", PATCHES[:6])], [("text", "we go on")]]]],
]
PARTS: list[Batch] = [batch_of(*rows) for step in ROWS for rows in step]
WHOLE = [batch_of(*(row for rows in step for row in rows)) for step in ROWS]
W_GATE = 0.3


def momentum(groups: Any) -> torch.optim.Optimizer:
    """An optimizer in which a small difference of gradients stays small."""
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor, gathered if it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class Witness(Callback):
    """Keeps gradients and figures of every step, and the last weights."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, OmniModule) and pl_module.vitals is not None
        step = trainer.global_step
        for name in ("main_loss", "tau", "neuron_surprise", "pi"):
            self.seen[f"{step}: {name}"] = whole(getattr(pl_module.vitals, name))
        for name, parameter in pl_module.named_parameters():
            assert parameter.grad is not None
            self.seen[f"{step}: gradient of {name}"] = whole(parameter.grad)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            self.seen[f"weights of {name}"] = whole(parameter)


def train(
    folder: Path,
    batches: list[Batch],
    surprise: Any = "global",
    also: Sequence[Callback] = (),
    **settings: Any,
) -> dict[str, Tensor]:
    """Train a module in float64; what there was to see."""
    witness = Witness()
    module = make_module(optimizer=momentum, w_gate=W_GATE, w_kl=0.1, surprise=surprise).double()
    watch(batches, folder, module, callbacks=[witness, *also], **settings)
    return witness.seen


def train_on_two_ranks(rank: int, folder: str) -> None:
    """Every way to train on two ranks; each leaves a file."""
    ways: dict[str, dict[str, Any]] = {
        "ddp": {"strategy": DDPStrategy()},
        "fsdp2": {"strategy": FSDP2Strategy(2)},
        "fsdp2 whole": {
            "strategy": FSDP2Strategy(2, reshard_after_forward=False),
            "validation": DataLoader(RankPart(PARTS), batch_size=None),  # before training, as after it
        },
        "recomputed": {"strategy": FSDP2Strategy(2), "also": [GradientCheckpointing()]},
        "tensor": {"strategy": FSDP2Strategy(1, 2)},
        "per rank": {"strategy": DDPStrategy(), "surprise": "per_rank"},
    }
    for name, settings in ways.items():
        batches = PARTS if name != "tensor" else [batch for batch in WHOLE for _ in range(2)]  # both read all
        seen = train(Path(folder, name), batches, devices=2, **settings)
        if rank == 0:
            torch.save(seen, Path(folder, f"{name}.pt"))


@pytest.mark.slow
def test_two_ranks_with_unequal_parts_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    run_ranks(train_on_two_ranks, str(tmp_path))
    alone = train(tmp_path / "alone", WHOLE)
    for name in ("ddp", "fsdp2", "fsdp2 whole", "recomputed", "tensor"):
        together = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for key, expected in alone.items():
            assert torch.allclose(together[key], expected, rtol=1e-9, atol=1e-11), (name, key)
    apart = torch.load(tmp_path / "per rank.pt", weights_only=True)
    gate = "0: gradient of trunk.blocks.0.moie.up.gate_param"
    assert not torch.allclose(apart[gate], alone[gate], rtol=1e-3)
    torch.testing.assert_close(apart["0: main_loss"], alone["0: main_loss"], rtol=1e-10, atol=0)
