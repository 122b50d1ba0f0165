"""Small monitored training runs: what the tests of the PI monitor, in one process and in two, have in common.

Notable:
- `PARTS` are four batches with equally many targets of each modality; `WHOLE` holds the rows of all.
- The optimizer leaves the weights alone where a test compares several steps on the same network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from toy import ByteText, Patches, pack

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import PIMonitor
from onn_lightning.nn import TrunkConfig
from onn_lightning.regulation import Vitals

MODALITIES = [ByteText(), Patches()]
TRUNK = TrunkConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=[24, 32])


def batch_of(*rows: list[Any]) -> Batch:
    return pack(rows, MODALITIES)


def _rows(shift: float, text: str) -> list[list[Any]]:
    return [[[("patch", [shift, -0.4, 0.3, 1.0, 0.2, -shift]), ("text", text)]], [[("text", text[::-1])]]]


_ROWS = [_rows(0.1, "ab"), _rows(0.7, "xy"), _rows(-0.5, "no"), _rows(0.0, "we")]
PARTS = [batch_of(*rows) for rows in _ROWS]
WHOLE = batch_of(*(row for rows in _ROWS for row in rows))


def still(groups: Any) -> torch.optim.Optimizer:
    """An optimizer that changes nothing."""
    return torch.optim.SGD(groups, lr=0.0)


def moving(groups: Any) -> torch.optim.Optimizer:
    """An optimizer that learns, and that a loss scaler can drive."""
    return torch.optim.AdamW(groups, lr=0.01)


class ScaledFloat32(MixedPrecision):
    """A loss scaler without reduced precision: what it changes is the scale alone."""

    def __init__(self, scale: float = 2.0, growth_interval: int = 1000) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
        super().__init__("16-mixed", "cpu", scaler)

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        yield


def make_module(**options: Any) -> OmniModule:
    torch.manual_seed(0)
    module = OmniModule(TRUNK, [ByteText(), Patches()], **{"optimizer": still, "w_gate": 0.1} | options)
    torch.nn.init.normal_(module.heads["patch"].projection.weight, std=0.1)  # a head at zero hides its inputs
    return module


class RankPart(IterableDataset[Batch]):
    """Every rank's own share of some batches, in turns.

    Args:
        batches: those of all ranks.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[Batch]:
        ranks = dist.is_available() and dist.is_initialized()
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if ranks else (0, 1)
        yield from self.batches[rank::world_size]

    def __len__(self) -> int:
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return len(self.batches) // ranks


class Keep(Callback):
    """Keeps the vitals and the logged figures of every step."""

    def __init__(self) -> None:
        self.vitals: list[Vitals] = []
        self.logged: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, OmniModule) and pl_module.vitals is not None
        self.vitals.append(pl_module.vitals)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def watch(
    batches: Sequence[Batch],
    folder: Path,
    module: OmniModule | None = None,
    monitor: PIMonitor | None = None,
    checkpoint: Path | None = None,
    **settings: Any,
) -> tuple[Keep, PIMonitor]:
    """Train on batches; returns what every step showed, and the monitor."""
    keep, monitor = Keep(), monitor or PIMonitor()
    options = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "val_check_interval": None,
    }
    callbacks = [monitor, *settings.pop("callbacks", []), keep]
    validation = settings.pop("validation", None)
    trainer = Trainer(
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options | settings,
    )
    trainer.fit(
        module or make_module(),
        DataLoader(RankPart(batches), batch_size=None),
        validation,
        ckpt_path=checkpoint,
        weights_only=True,
    )
    return keep, monitor


def tensors(vitals: Vitals) -> dict[str, Tensor]:
    """The figures of a step by name."""
    named = {field.name: getattr(vitals, field.name) for field in fields(vitals)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def assert_same_figures(got: Vitals, expected: Vitals, relative: float = 2e-5) -> None:
    """Equal up to rounding, small entries of a vector up to the rounding of its largest."""
    for name, value in tensors(expected).items():
        tolerance = relative * float(value.abs().max())
        torch.testing.assert_close(
            tensors(got)[name], value, rtol=relative, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
