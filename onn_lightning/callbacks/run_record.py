"""What a run leaves behind for its report: `record.json` in the run folder.

Notable:
- Only what the host knows anyway is counted, from shapes: no step is synchronised for it. Counts are those
  of rank 0 times the number of ranks that read different data.
- Where a step's time goes is known on the CPU, where a call returns once its work is done; on a GPU the
  phases of a step overlap, and only the whole step is timed.
- The file is replaced every half minute, at validations and at the end, by rank 0; its totals are in the
  checkpoints too, so that a resumed run goes on from those of the step that it goes on from.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules import OmniDataModule
from onn_lightning.batch import Batch
from onn_lightning.checkpoint.going_on import GoesOnFrom
from onn_lightning.module import OmniModule
from onn_lightning.run_report.plain_json import UnreadableFileError
from onn_lightning.run_report.record import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    Record,
    SourceRecord,
    Start,
    Totals,
    load_record,
    save_record,
)

PACKAGES = ("onn-lightning", "torch", "lightning")
FORWARD, BACKWARD, UPDATE, STEP = "forward", "backward", "optimizer", "step"
BETWEEN, VALIDATION = "between steps", "validation"


class RunRecord(Callback):
    """Keeps `record.json`: starts, device, versions, counts of tokens, times, sources.

    Args:
        every_seconds: the least time between two writes while training goes on.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._record: Record | None = None  # only in the process that writes it
        self._tokens: Counter[str] = Counter()
        self._targets: Counter[str] = Counter()
        self._places = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = self._written = 0.0

    # ---- what is counted -------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Until here: the loader, logs and checkpoints."""
        self._lap(BETWEEN)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Until here: the forward pass."""
        if pl_module.device.type == "cpu":
            self._lap(FORWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Until here: the backward pass."""
        if pl_module.device.type == "cpu":
            self._lap(BACKWARD)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Until here: the optimizer and what regulates it."""
        self._lap(UPDATE if pl_module.device.type == "cpu" else STEP)
        assert isinstance(pl_module, OmniModule)
        ranks = pl_module.ranks.size
        self._places += batch.document_ids.numel() * ranks
        for name, tokens in batch.modalities.items():
            self._tokens[name] += len(tokens.indices) * ranks
            if tokens.targets is not None:
                self._targets[name] += len(tokens.targets) * ranks
        if self._clock - self._written >= self.every_seconds:
            self._write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is timed by itself."""
        self._lap(BETWEEN)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Until here: validation."""
        self._lap(VALIDATION)
        self._write(trainer)

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        if self._clock:
            self._seconds[phase] += now - self._clock
        self._clock = now

    # ---- the lifecycle ---------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add this start to those that the folder knows."""
        self._clock = time.perf_counter()
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        try:
            earlier = load_record(_folder(trainer)).starts
        except UnreadableFileError:
            earlier = ()
        self._record = Record(
            starts=(*earlier, _start(trainer, pl_module)),
            max_steps=max(0, trainer.max_steps or 0),
            parameters=_parameters(pl_module),
        )
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run has ended by itself."""
        self._write(trainer, FINISHED)
        self._clock = 0.0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The run was stopped, or failed."""
        if isinstance(exception, GoesOnFrom):  # what goes on is a start of its own
            self._write(trainer, FINISHED, exception.what)
        elif isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self._write(trainer, INTERRUPTED)
        else:
            lines = str(exception).splitlines()
            self._write(trainer, FAILED, f"{type(exception).__name__}: {lines[0][:300] if lines else ''}")
        self._clock = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The totals."""
        return {
            "tokens": dict(self._tokens),
            "targets": dict(self._targets),
            "places": self._places,
            "seconds": dict(self._seconds),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the totals of a checkpoint."""
        self._tokens = Counter(state_dict["tokens"])
        self._targets = Counter(state_dict["targets"])
        self._places = state_dict["places"]
        self._seconds = defaultdict(float, state_dict["seconds"])

    # ---- the file --------------------------------------------------------------------------------

    def _write(self, trainer: Trainer, state: str | None = None, error: str = "") -> None:
        if self._record is None:
            return
        newest = self._record.starts[-1]
        newest = replace(newest, alive=time.time(), last_step=trainer.global_step, error=error)
        if state is not None:
            newest = replace(newest, state=state)
        self._record = replace(
            self._record,
            starts=(*self._record.starts[:-1], newest),
            totals=Totals(dict(self._tokens), dict(self._targets), self._places, dict(self._seconds)),
        )
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, OmniDataModule):
            self._record = _with_data(self._record, data)
        save_record(_folder(trainer), self._record)
        self._written = time.perf_counter()


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _start(trainer: Trainer, pl_module: LightningModule) -> Start:
    now = time.time()
    return Start(
        started=now,
        alive=now,
        first_step=trainer.global_step,
        last_step=trainer.global_step,
        command=tuple(sys.argv[1:]) if _is_onn(Path(sys.argv[0])) else (),
        device=_device(pl_module.device),
        processes=trainer.world_size,
        precision=str(trainer.precision),
        versions={
            "Python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)},
        },
    )


def _is_onn(program: Path) -> bool:
    return program.stem == "onn" or program.parts[-2:] == ("onn_lightning", "__main__.py")


def _installed(package: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=package))


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({platform.machine()}), {torch.get_num_threads()} of {os.cpu_count()} threads"
    return str(device)


def _parameters(module: LightningModule) -> dict[str, int]:
    """Trained numbers by part; what two parts share counts for the first of them."""
    counts: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            counts[".".join(name.split(".")[: 2 if name.startswith(("embedders", "heads")) else 1])] += (
                parameter.numel()
            )
    return dict(counts)


def _with_data(record: Record, data: OmniDataModule) -> Record:
    bad, weights = data.bad_samples, data.mixture_weights
    earlier = record.sources
    return replace(
        record,
        row_length=data.row_length,
        rows_per_batch=data.rows_per_batch,
        sources={
            split: {
                name: SourceRecord(
                    documents=earlier[split][name].documents
                    if split in earlier
                    else (len(source) if split in ("train", "validation") else None),
                    grows=source.follows,
                    weight=weights[name] if split == "train" else 0.0,
                    bad_samples=bad.get(f"{split}/{name}", 0),
                )
                for name, source in sources.items()
            }
            for split, sources in data.splits.items()
        },
        fingerprints={
            modality.name: {key: str(value) for key, value in modality.fingerprint().items()}
            for modality in data.modalities
        },
    )
