"""The progress bar of a run: short names, so that its figures fit beside it in a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


def _plain(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _count(value: float) -> str:
    return (
        f"{value:.0f}" if value < 10_000 else f"{value / 1e3:.4g}k" if value < 1e6 else f"{value / 1e6:.4g}M"
    )


_SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "train/main_loss": ("loss", _plain),
    "train/pi": ("pi", _plain),
    "train/tokens_per_second": ("tok/s", _count),
    "train/mfu": ("mfu", _percent),
    "train/data_wait": ("wait", _percent),
    "train/memory_gb": ("GB", lambda value: f"{value:.1f}"),
}


class RunProgressBar(RichProgressBar):
    """Rich's bar with the figures of `PIMonitor` and `Throughput`; others as they are."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar."""
        shown: dict[str, int | str | float | dict[str, float]] = {}
        for name, value in super().get_metrics(trainer, pl_module).items():
            if name in _SHOWN and isinstance(value, int | float):
                label, written = _SHOWN[name]
                shown[label] = written(value)
            elif name != "v_num":  # of the folder of the CSV logs: nothing to follow
                shown[name] = value
        return shown
