"""`LossSpikes`: steps whose loss stands out are counted and named; a run may go back to before they began.

Notable:
- The rule (`regulation.loss_spikes`) sees every step on its device; what it said is read, and told, at the
  trainer's logging rhythm, all steps since the last time at once. The figures are the same on all ranks.
- A spike is told when it begins, and again when it has lasted `sustained_steps`.
- With `roll_back` a lasting spike stops the run, and it goes on from its newest intact checkpoint of before
  the spike, with the data AFTER it: what the run has read since is not read again. The step counts from there
  too. Checkpoints of later steps are put aside (`checkpoints/rolled_back/`); the new one's history and the
  record of the run say what was done. Rank 0 makes the checkpoint, all ranks stop together. It is one file
  even where the run's own are sharded: rank 0 puts the whole together in CPU memory.
- There must be such a checkpoint: keep more than the last one, and let the logging rhythm be shorter than
  that of the checkpoints. Where there is none, that is said, and the run goes on as it is.
- A run that comes past the step of its last roll-back without a lasting spike has got over it. One that does
  not, `max_rollbacks` times in a row, stops.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from onn_lightning.callbacks.durable_io import saves_shards, wait_for_writes
from onn_lightning.callbacks.pi_monitor import MOST_UNREAD, PIMonitor, ReadsVitals
from onn_lightning.callbacks.run_checkpoint import folder_of, lead_to, save_no_more
from onn_lightning.checkpoint import description, folders, writing
from onn_lightning.checkpoint.going_on import RolledBack
from onn_lightning.checkpoint.rolling_back import ASIDE, newest_before, put_aside, with_data_place_of
from onn_lightning.distributed import ShardedStrategy
from onn_lightning.module import OmniModule
from onn_lightning.regulation.loss_spikes import SpikeRule


class LossSpikes(ReadsVitals):
    """Counts and names loss spikes, logs `train/loss_spikes`, goes back to before lasting ones if told to.

    Args:
        rule: what a spike is; None: `SpikeRule()`.
        sustained_steps: so many spiking steps in a row are a lasting spike.
        roll_back: whether to go back then.
        max_rollbacks: so many in a row without getting over the spike; the next one stops the run.
    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self,
        rule: SpikeRule | None = None,
        sustained_steps: int = 10,
        roll_back: bool = False,
        max_rollbacks: int = 3,
    ) -> None:
        for name, value in (("sustained_steps", sustained_steps), ("max_rollbacks", max_rollbacks)):
            if value < 1:
                raise ValueError(f"LossSpikes: {name} is {value}, it must be at least 1")
        self.rule = rule or SpikeRule()
        self.sustained_steps = sustained_steps
        self.roll_back, self.max_rollbacks = roll_back, max_rollbacks
        self._unread: list[tuple[int, Tensor]] = []  # step, and [3 H + 1] of it on the device
        self._total = self._rollbacks = self._furthest = 0
        self._began: int | None = None  # first step of a lasting spike that is to be undone
        self._is_due = False

    @property
    def total(self) -> int:
        """Spikes that were told since the run began; steps in a row are one."""
        return self._total

    # ---- the way through a step --------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before hours have gone into it.

        Raises:
            MisconfigurationException: without a monitor, or to roll back with a strategy whose checkpoints
                are not ours.
        """
        super().setup(trainer, pl_module, stage)
        strategy = trainer.strategy
        is_ours = not saves_shards(strategy) or isinstance(strategy, ShardedStrategy)
        if stage == "fit" and self.roll_back and not is_ours:
            raise MisconfigurationException(
                "LossSpikes rolls back to checkpoints of one file or of FSDP2Strategy, and not to what "
                f"{type(strategy).__name__} saves: take onn_lightning.distributed.FSDP2Strategy, or leave "
                "roll_back false"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The rule's state lies where the vitals are made."""
        assert isinstance(pl_module, OmniModule)
        self._unread, self._began, self._is_due = [], None, False
        # a copy: ranks spawned on one machine would share the memory of what they were given
        self.rule = copy.deepcopy(self.rule).to(pl_module.device)
        self.rule.observe(len(pl_module.heads))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Show the step to the rule; tell what it said at the logging rhythm."""
        assert isinstance(pl_module, OmniModule)
        if pl_module.vitals is None:
            return
        said = self.rule(pl_module.vitals)
        row = torch.cat([said.spiking.float(), said.loss, said.expected, said.in_a_row.float().view(1)])
        self._unread.append((trainer.global_step + 1, row))
        if PIMonitor.logs_now(trainer) or len(self._unread) == MOST_UNREAD:
            self._read(list(pl_module.heads))
        if PIMonitor.logs_now(trainer):
            pl_module.log("train/loss_spikes", float(self._total))

    def _read(self, names: list[str]) -> None:
        """The one place where the host waits for the device."""
        steps = [step for step, _ in self._unread]
        rows = torch.stack([row for _, row in self._unread]).tolist()
        self._unread = []
        count = len(names)
        for step, (*figures, in_a_row) in zip(steps, rows, strict=True):
            spiking = [number for number in range(count) if figures[number]]
            what = ", ".join(
                f"the loss of {names[number]} is {figures[count + number]:.4g} "
                f"where {figures[2 * count + number]:.4g} was expected"
                for number in spiking
            )
            if in_a_row == 1:
                self._total += 1
                rank_zero_warn(
                    f"LossSpikes: optimizer step {step:,}: {what} (spike {self._total} of the run)"
                )
            if in_a_row == self.sustained_steps:
                self._began = step - self.sustained_steps + 1
                rank_zero_warn(f"LossSpikes: the spike of optimizer step {self._began:,} lasts: {what}")
            if self._began is None and step > self._furthest and not spiking:
                self._rollbacks = 0  # got over it

    # ---- going back --------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the place in the data where a run that goes back will go on."""
        if self._began is None or self._is_due:
            return
        ends_here = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step  # type: ignore[attr-defined]
        if not self.roll_back or ends_here or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._began = None
            return
        trainer.save_checkpoint(self._spiking_file(trainer))
        self._is_due = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go back, if that is due.

        Raises:
            RolledBack: on all ranks.
            RuntimeError: after too many in a row.
        """
        if not self._is_due or self._began is None:
            return
        began, self._began, self._is_due = self._began, None, False
        if self._rollbacks == self.max_rollbacks:
            save_no_more(trainer)
            raise RuntimeError(
                f"LossSpikes: a spike that began at optimizer step {began:,} lasts, after {self._rollbacks} "
                "roll-backs in a row without getting over it. Lower the learning rate, set "
                "trainer.gradient_clip_val, or look at the data; then go on from a checkpoint of before that "
                f"step (--ckpt_path). The state of now is {self._spiking_file(trainer)}"
            )
        made, failure = None, ""
        if trainer.is_global_zero:
            try:
                made = self._make(trainer, began)
            except Exception as error:  # the others must not wait for what will never come
                failure = f"{type(error).__name__}: {error}"
        made, failure = trainer.strategy.broadcast((made, failure))
        if failure:
            raise RuntimeError(f"LossSpikes: rank 0 could not roll back to before step {began:,}: {failure}")
        if made is not None:
            save_no_more(trainer)  # spiking, and by now at a wrong place in the data
            raise RolledBack(Path(made[0]), made[1])

    def _make(self, trainer: Trainer, began: int) -> tuple[str, str] | None:
        """Write the checkpoint to go on from; its file, and what was done."""
        wait_for_writes(trainer)  # of this step, which would be the newest afterwards
        spiking = self._spiking_file(trainer)
        folder, now = spiking.parents[1], trainer.global_step
        found = newest_before(folder, began)
        if found is None:
            rank_zero_warn(
                f"LossSpikes: {folder} has no intact checkpoint of before optimizer step {began:,}: no "
                "roll-back. Keep more than the last checkpoint"
            )
            return None
        path, checkpoint = found
        step = int(checkpoint["global_step"])
        what = (
            f"rolled back from step {now:,} to step {step:,}, since the loss spiked from step {began:,} on; "
            "goes on with the data after that"
        )
        checkpoint = with_data_place_of(checkpoint, description.read(spiking, mmap=True), what)
        told = {"total": self._total, "rollbacks": self._rollbacks + 1, "furthest": now}
        callbacks = checkpoint["callbacks"]
        own = self.state_dict() | callbacks.get(self.state_key, {}) | told
        target = folder / f"step={step}-rolled-back-{now}.ckpt"
        writing.write(checkpoint | {"callbacks": callbacks | {self.state_key: own}}, target)
        lead_to(trainer, target)
        put_aside(folder, step)
        folders.remove(spiking)  # as large as any other, and of no use but for its place in the data
        rank_zero_warn(f"LossSpikes: {what} ({path} -> {target})")
        return str(target), f"LossSpikes: {what}"

    @staticmethod
    def _spiking_file(trainer: Trainer) -> Path:
        """Beside the checkpoints that nothing goes on from."""
        return folder_of(trainer) / ASIDE / f"step={trainer.global_step}-spiking.ckpt"

    # ---- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counts, and the rule's state, on the CPU."""
        rule = {name: value.cpu().clone() for name, value in self.rule.state_dict().items()}
        return {
            "total": self._total,
            "rollbacks": self._rollbacks,
            "furthest": self._furthest,
            "rule": rule,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._total, self._rollbacks = state_dict["total"], state_dict["rollbacks"]
        self._furthest = state_dict["furthest"]
        self.rule.observe(len(state_dict["rule"]["seen"]))
        self.rule.load_state_dict(state_dict["rule"])
