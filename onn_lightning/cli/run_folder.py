"""The folder of a run: what lies in it, what is written there by default, what a run resumes from.

```
runs/<name>/
  config.yaml            the resolved config of the training run
  checkpoints/           step=<n>.ckpt, those that RunCheckpoint keeps; last.ckpt, a link to the newest
  events.out.tfevents.*  TensorBoard
  csv/version_<n>/       metrics.csv of each start of the run (a resumed run adds one)
  core_metrics.png       live charts; neurons.png: which neurons fire; neurons.npz: the same as numbers
  record.json            its starts, counts, times and sources; samples.json, results.json: as printed
```
Notable: which of the checkpoints a run resumes from, `onn_lightning.checkpoint.complete` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger

from onn_lightning.callbacks import (
    Dashboard,
    GracefulStop,
    LossSpikes,
    PIMonitor,
    RandomStates,
    RankWatchdog,
    RunCheckpoint,
    RunProgressBar,
    RunRecord,
    RunReport,
    SkipBrokenSteps,
    Throughput,
)
from onn_lightning.loggers import LastingCSVLogger, LastingTensorBoardLogger

RUNS = "runs"


def default_loggers(folder: Path) -> list[Logger]:
    """TensorBoard straight in the run folder (Lightning then puts checkpoints/ there too) and CSV."""
    return [LastingTensorBoardLogger(folder, name="", version=""), LastingCSVLogger(folder, name="csv")]


def default_callbacks(given: Sequence[Callback], trainer: dict[str, Any]) -> list[Callback]:
    """Progress bar, checkpoints, throughput, dashboard, report: where the config has no own and forbids none.

    Args:
        given: callbacks of the config.
        trainer: the trainer's arguments.
    """
    callbacks: list[Callback] = [] if _any(given, RankWatchdog) else [RankWatchdog()]
    if trainer.get("enable_progress_bar") is not False and not _any(given, ProgressBar):
        callbacks.append(RunProgressBar())
    if trainer.get("enable_checkpointing") is not False and not _any(given, ModelCheckpoint):
        callbacks.append(RunCheckpoint())
    if trainer.get("logger") is not False:
        callbacks += [kind() for kind in (LearningRateMonitor, Throughput) if not _any(given, kind)]
        if not trainer.get("fast_dev_run") and not _any(given, Dashboard):
            callbacks.append(Dashboard())
    always = (RunRecord, RunReport, RandomStates, GracefulStop)
    callbacks += [kind() for kind in always if not _any(given, kind)]
    return callbacks


def in_order(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks of a run, the one that stops it last: all others have then seen the step.

    Args:
        callbacks: of the config, and those that it has by default.
    """
    return sorted(callbacks, key=lambda callback: isinstance(callback, GracefulStop))


def with_guards(given: Sequence[Callback]) -> list[Callback]:
    """The callbacks of a config, with a PI monitor in front and, after it, what looks after the steps.

    In front, since regulating callbacks read what the monitor measures in the same step. Where the config has
    its own, they stay where they are.

    Args:
        given: callbacks of the config.
    """
    callbacks = [*given] if _any(given, PIMonitor) else [PIMonitor(), *given]
    monitor = next(place for place, kept in enumerate(callbacks) if isinstance(kept, PIMonitor))
    guards = [kind() for kind in (SkipBrokenSteps, LossSpikes) if not _any(given, kind)]
    return [*callbacks[: monitor + 1], *guards, *callbacks[monitor + 1 :]]


def _any(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config of a training run to `config.yaml` in the run folder.

    What belongs to one start only (`resume`, `ckpt_path`) is left out, so that the file serves any
    verb: `onn test --config runs/<name>/config.yaml`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.pop("resume", None)
        config["ckpt_path"] = None
        path = folder / self.config_filename
        self.parser.save(config, path, skip_unset=False, overwrite=True, multifile=False)
