"""Live pictures of a run: `core_metrics.png`, `neurons.png`, and TensorBoard's histograms and heatmaps.

Notable:
- The training thread copies a vector of activations every few steps and, once in `every_n_steps`, some
  samples of the parameters; reading logs, drawing and writing are the work of another process.
- A tick that finds the last drawing still under way is passed over. Whatever goes wrong with a drawing is
  said once and touches nothing else.
- Only rank 0 does any of this, and none of it is a collective.
- The history of the neurons is in the checkpoints: a resumed run goes on with the one of the step that it
  resumes from.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from onn_lightning.callbacks.pi_monitor import PIMonitor
from onn_lightning.dashboard.distributions import HostCopy, Samples
from onn_lightning.dashboard.heatmap import NeuronHistory
from onn_lightning.dashboard.job import Drawn, Job
from onn_lightning.dashboard.process import DrawingProcess
from onn_lightning.module import OmniModule

_log = logging.getLogger("lightning.pytorch")  # shown on the terminal by Lightning, on rank 0

RGBA = 4
IMAGE_GROWTH = 1.1  # of the step from one image in TensorBoard's files to the next: each shows the whole past


@dataclass(frozen=True)
class _Snapshot:
    """Activation of all neurons at a step."""

    step: int
    sizes: dict[str, int]
    activation: HostCopy


@dataclass(frozen=True)
class _Tick:
    """A drawing that begins once its samples, where any are wanted, have arrived."""

    step: int
    samples: Samples | None
    images: bool

    @property
    def ready(self) -> bool:
        return self.samples is None or self.samples.ready


class Dashboard(Callback):
    """Rewrites the pictures of a run while it goes on, in its folder (`trainer.default_root_dir`).

    Args:
        every_n_steps: optimizer steps between two drawings.
        snapshot_every_n_steps: optimizer steps between two entries of the neurons' history; the first step
            is one too.
        last_drawing_seconds: how long the end of training waits for a last drawing; 0: there is none.
    Raises:
        ValueError: for a rhythm below one step.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        snapshot_every_n_steps: int = 10,
        last_drawing_seconds: float = 60.0,
    ) -> None:
        for name, steps in (
            ("every_n_steps", every_n_steps),
            ("snapshot_every_n_steps", snapshot_every_n_steps),
        ):
            if steps < 1:
                raise ValueError(f"Dashboard: {name} is {steps}, it must be at least 1")
        self.every_n_steps, self.snapshot_every_n_steps = every_n_steps, snapshot_every_n_steps
        self.last_drawing_seconds = last_drawing_seconds
        self.history = NeuronHistory()
        self._process: DrawingProcess | None = None  # only where drawing goes on
        self._logs: Path | None = None
        self._snapshot: _Snapshot | None = None  # on its way to the host
        self._tick: _Tick | None = None  # the same
        self._last_step = self._drawn_step = self._image_step = 0
        self._warned = False

    # ---- training --------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the logs, and get ready to draw."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        self._logs = next(
            (Path(logger.log_dir).parent for logger in trainer.loggers if isinstance(logger, CSVLogger)), None
        )
        if self._logs is None:
            _log.info("Dashboard: the run has no CSVLogger, so core_metrics.png is not drawn")
        self._last_step, self._warned = trainer.global_step, False
        self._process = DrawingProcess()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a snapshot, start a drawing, show what was drawn: each where it is its time."""
        if self._process is None:
            return
        assert isinstance(pl_module, OmniModule)
        if trainer.global_step != self._last_step:  # not so between the batches of one accumulated step
            self._last_step = trainer.global_step
            if self._last_step % self.snapshot_every_n_steps == 0 or self._last_step == 1:
                self._take_snapshot(pl_module)
            if self._last_step % self.every_n_steps == 0 and self._process.idle:
                images = self._last_step >= IMAGE_GROWTH * self._image_step
                self._tick = self._new_tick(trainer, pl_module, images)
        if self._snapshot is not None and self._snapshot.activation.ready:
            self._keep_snapshot()
        if self._tick is not None and self._tick.ready:
            self._draw(trainer)
        self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the end of training, and wait for it."""
        if self._process is None:
            return
        if self.last_drawing_seconds > 0:
            self._draw_the_end(trainer, pl_module)
        self._show(trainer)
        self._stop(seconds=2)

    def _draw_the_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, OmniModule) and self._process is not None
        deadline = time.monotonic() + self.last_drawing_seconds
        if self._process.wait(self.last_drawing_seconds):
            if self._drawn_step == trainer.global_step:  # all but the last lines of the logs is there
                self._tick = _Tick(trainer.global_step, None, images=False)
            else:
                self._tick = self._new_tick(trainer, pl_module, images=True)
            self._draw(trainer)
        if not self._process.wait(max(0.0, deadline - time.monotonic())):
            self._warn(f"the last drawing took more than {self.last_drawing_seconds:g} seconds")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A drawing that is under way may end."""
        self._stop(seconds=2)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no process behind, whatever way training ended."""
        self._stop(seconds=0)

    def _stop(self, seconds: float) -> None:
        process, self._process = self._process, None
        self._keep_snapshot()
        self._tick = None
        if process is not None:
            process.close(seconds)

    # ---- snapshots -------------------------------------------------------------------------------

    def _take_snapshot(self, module: OmniModule) -> None:
        self._keep_snapshot()
        if module.vitals is not None:
            sizes = {name: layer.out_features for name, layer in module.trunk.sbl_layers()}
            self._snapshot = _Snapshot(self._last_step, sizes, HostCopy(module.vitals.neuron_activation))

    def _keep_snapshot(self) -> None:
        """Add the snapshot that is on its way to the history."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self.history.add(snapshot.step, snapshot.sizes, snapshot.activation.array())

    # ---- drawing ---------------------------------------------------------------------------------

    def _new_tick(self, trainer: Trainer, module: OmniModule, images: bool) -> _Tick:
        if _tensorboard(trainer) is None:
            return _Tick(trainer.global_step, None, False)
        per_neuron: dict[str, Tensor] = {}
        if module.vitals is not None:
            per_neuron["activation"] = module.vitals.neuron_activation
        monitor = PIMonitor.of(trainer)
        if monitor is not None and monitor.lifetime_activation is not None:
            per_neuron["lifetime_activation"] = monitor.lifetime_activation
        if images:
            self._image_step = trainer.global_step
        return _Tick(trainer.global_step, Samples(module.trunk, per_neuron), images)

    def _draw(self, trainer: Trainer) -> None:
        assert self._process is not None and self._tick is not None
        tick, self._tick = self._tick, None
        self._keep_snapshot()
        self._drawn_step = tick.step
        self._process.submit(
            Job(
                tick.step,
                Path(trainer.default_root_dir),
                self._logs,
                self.history.arrays() if len(self.history) else None,
                {} if tick.samples is None else tick.samples.arrays(),
                tick.images,
            )
        )

    def _show(self, trainer: Trainer) -> None:
        """Hand to TensorBoard what was drawn; say what went wrong."""
        assert self._process is not None
        for drawn in self._process.answers():
            for problem in drawn.problems:
                self._warn(problem)
            if (logger := _tensorboard(trainer)) is not None:
                _add(logger, drawn)

    def _warn(self, problem: str) -> None:
        if not self._warned:
            _log.warning("Dashboard: %s (training goes on; said once)", problem)
        self._warned = True

    # ---- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The history of the neurons."""
        self._keep_snapshot()
        return {name: torch.from_numpy(array) for name, array in self.history.arrays().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        try:
            self.history = NeuronHistory.from_arrays(
                {name: value.numpy() for name, value in state_dict.items()}
            )
        except ValueError as error:
            self.history = NeuronHistory()
            _log.warning("Dashboard: %s; it begins anew", error)


def _tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _add(logger: TensorBoardLogger, drawn: Drawn) -> None:
    writer = logger.experiment
    for tag, counts in drawn.histograms.items():
        writer.add_histogram_raw(
            tag,
            counts.low,
            counts.high,
            counts.number,
            counts.total,
            counts.total_of_squares,
            counts.limits,
            counts.counts,
            drawn.step,
        )
    for tag, image in drawn.images.items():
        picture = Summary.Image(
            encoded_image_string=image.png, width=image.width, height=image.height, colorspace=RGBA
        )
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), drawn.step)
