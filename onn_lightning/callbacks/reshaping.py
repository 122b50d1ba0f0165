"""`ReshapingCallback`: what growth and pruning in mid-run share - save, reshape, stop, let others rebuild.

Notable:
- The decision is made at the end of a step, after all other callbacks (Lightning puts those of the type
  `Checkpoint` last), and a complete checkpoint of that step is saved through the trainer, in which the
  reshaping stands as due. The reshaped checkpoint is made of it before the next step: by then the step is
  logged, and validated where that was its turn.
- Being of that type keeps Lightning from adding its default ModelCheckpoint: a script adds its own.
- A kill leaves the checkpoint with the due reshaping, which is then done as the run is resumed from it, or
  the complete reshaped one. The run goes on as if nobody had killed it.
- Rank 0 makes the reshaped checkpoint from the file; all ranks wait for it and stop together.
- The reshaped one is one file even where the run's own are sharded: rank 0 puts the whole together in CPU
  memory. `ShardedStrategy` loads it sharded again.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from onn_lightning.callbacks.durable_io import saves_shards, wait_for_writes
from onn_lightning.callbacks.pi_monitor import PIMonitor
from onn_lightning.callbacks.run_checkpoint import folder_of, lead_to, save_no_more
from onn_lightning.checkpoint import description, folders, writing
from onn_lightning.distributed import ShardedStrategy
from onn_lightning.modality import Modality
from onn_lightning.module import OmniModule
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping import Reshaping, reshape_checkpoint
from onn_lightning.reshaping.budget import count_parameters
from onn_lightning.reshaping.rebuild import NetworkReshaped

_log = logging.getLogger("lightning.pytorch")  # shown on the terminal by Lightning, on rank 0


class ReshapingCallback(Checkpoint):
    """Reshapes the network of a run when it is time; raises `NetworkReshaped`, which `onn fit` catches.

    Args:
        check_every_n_steps: how often is looked whether it is time.
    Raises:
        ValueError: if that is not above 0.
    """

    best_model_path = (
        ""  # Lightning asks the first `Checkpoint` for it: these files are no choice of the best
    )
    done = ""
    """What was done, ending of the names of files."""

    keeps_previous = True
    """Whether the checkpoint of before stays."""

    def __init__(self, check_every_n_steps: int) -> None:
        if check_every_n_steps < 1:
            raise ValueError(
                f"{type(self).__name__}: check_every_n_steps is {check_every_n_steps}, it must be at least 1"
            )
        self.check_every_n_steps = check_every_n_steps
        self._due = False
        self._checked = -1

    # ---- what growth and pruning differ in ---------------------------------------------------------

    @abstractmethod
    def is_time(self, trainer: Trainer, module: OmniModule) -> bool:
        """Whether to reshape at the end of this step; asked every `check_every_n_steps`."""

    @abstractmethod
    def plans(
        self, checkpoint: Mapping[str, Any], trunk: TrunkConfig, modalities: list[Modality]
    ) -> Iterator[Reshaping]:
        """What to do with a checkpoint, each plan for the trunk that the one before it leaves."""

    @abstractmethod
    def note_done(self) -> None:
        """Change the state to what it is after a reshaping."""

    # ---- the way through a step --------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before hours have gone into it.

        Raises:
            MisconfigurationException: without a monitor, or with a strategy whose checkpoints are not ours.
        """
        if stage != "fit":
            return
        PIMonitor.require_before(trainer, self)
        strategy = trainer.strategy
        if saves_shards(strategy) and not isinstance(strategy, ShardedStrategy):
            raise MisconfigurationException(
                f"{type(self).__name__} reshapes checkpoints of one file or of FSDP2Strategy, and not what "
                f"{type(strategy).__name__} saves: take onn_lightning.distributed.FSDP2Strategy "
                "(FSDPStrategy: state_dict_type='full')"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what was due when a run was killed."""
        self._checked = trainer.global_step  # under accumulation, the next batches still belong to this step
        if self._due and trainer.ckpt_path is not None:
            self._reshape(trainer, pl_module, Path(trainer.ckpt_path))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look whether it is time; if so, save this very step."""
        assert isinstance(pl_module, OmniModule)
        step = trainer.global_step
        if step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            pl_module.log("train/parameters", float(sum(p.numel() for p in pl_module.parameters())))
        if step == self._checked or step % self.check_every_n_steps or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._checked = step
        ends_here = trainer.should_stop or 0 <= trainer.max_steps <= step  # type: ignore[attr-defined]
        # figures are the same on all ranks; a rank that stopped alone would leave the others waiting for ever
        if ends_here or not trainer.strategy.reduce_boolean_decision(
            self.is_time(trainer, pl_module), all=False
        ):
            return
        self._due = True
        trainer.save_checkpoint(self._file(trainer, f"before-{self.done}"))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reshape, and stop."""
        if self._due:
            self._reshape(trainer, pl_module, self._file(trainer, f"before-{self.done}"))

    def _reshape(self, trainer: Trainer, pl_module: LightningModule, before: Path) -> None:
        assert isinstance(pl_module, OmniModule)
        self._due = False
        self.note_done()
        after, failure, what = self._file(trainer, self.done), None, ""
        if trainer.is_global_zero:
            try:
                wait_for_writes(trainer)  # the reshaped one is to be the newest
                what = self._write(before, after, list(pl_module.modalities.values()))
                lead_to(trainer, after)
                if not self.keeps_previous:
                    folders.remove(self._file(trainer, f"before-{self.done}"))
            except Exception as error:  # the others must not wait for what will never come
                failure = error
        if error_text := trainer.strategy.broadcast(str(failure or "")):
            raise failure or RuntimeError(f"rank 0 could not reshape the network: {error_text}")
        save_no_more(trainer)  # the next batch is taken: a wrong place in the data
        raise NetworkReshaped(after, trainer.strategy.broadcast(what))

    def _write(self, before: Path, after: Path, modalities: list[Modality]) -> str:
        checkpoint = description.read(before, mmap=before.is_file())
        old, _ = description.restore(checkpoint, before, modalities)
        known = len(description.history(checkpoint))
        trunk = old
        for plan in self.plans(checkpoint, old, modalities):
            checkpoint = reshape_checkpoint(checkpoint, plan, modalities)
            trunk = plan.trunk
        checkpoint["callbacks"] = {**checkpoint["callbacks"], self.state_key: self.state_dict()}
        writing.write(checkpoint, after)
        changes = "; ".join(entry["what"] for entry in description.history(checkpoint)[known:])
        what = (
            f"{type(self).__name__}: {changes} at step {checkpoint['global_step']:,}, "
            f"{count_parameters(old, modalities):,} -> {count_parameters(trunk, modalities):,} parameters"
        )
        _log.warning("%s (%s)", what, after)
        return what

    def _file(self, trainer: Trainer, name: str) -> Path:
        """In the folder of the run's other checkpoints."""
        return folder_of(trainer) / f"step={trainer.global_step}-{name}.ckpt"

    # ---- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Whether a reshaping is due."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._due = state_dict["due"]
