"""SIGTERM, Ctrl-C and SLURM's signals during training: end the step, save, stop - on all ranks together.

Notable:
- An exception in the middle of a step would leave a checkpoint whose place in the data is one batch ahead of
  the model, and a resumed run would differ from an unbroken one. So a signal is kept until an optimizer step
  has ended; a second Ctrl-C stops at once. Where one process waits for a step's data, that place is exact,
  and it stops at once; so it does outside of training, where there is nothing to save.
- Several ranks agree on the step through the store of their process group (`StopAgreement`), whichever of
  them has got the signal; a validation that is under way is ended first. Lightning's own way would have the
  host wait for the device before every batch.
- The interpreter runs handlers in the main thread alone, which may be waiting in a collective for ever. A
  second thread learns of a signal at once (`signal.set_wakeup_fd`) and ends the process once the grace period
  is over; a checkpoint that is being written is then not there, and the one before it is whole.
- Stopping does not decide what is saved: `RunCheckpoint(save_on_exception=True)` does, which `onn fit` has.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from onn_lightning.callbacks.run_checkpoint import save_no_more
from onn_lightning.distributed.own_store import connect
from onn_lightning.distributed.stop_agreement import StopAgreement

REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""What SLURM is told to send some time before a job's limit: `#SBATCH --signal=USR1@120`."""

_LOOK_EVERY = 0.5  # seconds
_SAME_KEY_PRESS = 1.0  # seconds; a terminal and torchrun both pass one Ctrl-C on
_log = logging.getLogger("lightning.pytorch")


class GracefulStop(Callback):
    """Turns a signal during training into an exception at the end of an optimizer step, one for all ranks.

    SIGTERM and, under SLURM, SIGUSR1 and SIGUSR2 become `SIGTERMException`, Ctrl-C a KeyboardInterrupt.

    Args:
        grace_period: seconds from SIGTERM to the end of the process with exit code 143, whatever it does by
            then; the other signals have none. SLURM's KillWait and Kubernetes' terminationGracePeriodSeconds
            are 30 unless set otherwise: stay below them.
    Raises:
        ValueError: if it is not above 0.
    """

    def __init__(self, grace_period: float = 25.0) -> None:
        if not grace_period > 0:
            raise ValueError(f"GracefulStop: grace_period is {grace_period} seconds, it must be above 0")
        self.grace_period = grace_period
        self._trainer: Trainer | None = None
        self._agreement: StopAgreement | None = None
        self._watch: _SignalThread | None = None
        self._previous: dict[int, Any] = {}
        self._asked_at: float | None = None
        self._stops = False

    @property
    def requeue_is_due(self) -> bool:
        """Whether the ranks stopped for a signal after which SLURM is to queue the job again."""
        return self._agreement is not None and self._agreement.reason in REQUEUE_SIGNALS

    # ---- the way through a run ---------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            self._trainer, self._agreement, self._asked_at, self._stops = trainer, None, None, False
            self._watch = self._watch or _SignalThread(self.grace_period, _signals())
            self._take_signals()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take them back from Lightning, which took them at the end of its set-up."""
        self._take_signals()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_sanity_check_start`."""
        self._take_signals()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_sanity_check_start`."""
        self._take_signals()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_sanity_check_start`."""
        self._take_signals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to stop at the end of steps."""
        if self._watch is None:
            return
        store = connect() if trainer.world_size > 1 else None
        self._agreement = StopAgreement(store, trainer.global_rank, trainer.world_size)
        self._watch.agreement = self._agreement
        self._take_signals()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if that was agreed.

        Raises:
            SIGTERMException, KeyboardInterrupt: if so.
        """
        if self._agreement is None or not self._agreement.batch_done():
            return
        if trainer.fit_loop._should_accumulate() or 0 <= trainer.max_steps <= trainer.global_step:
            return  # gradients that are kept back are in no checkpoint; a run that is at its end ends
        self._stops = True
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.procs.clear()  # it would kill this process as soon as one of them has ended with 143
        raise _exception_for(self._agreement.reason)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the other ranks stop without this one."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hand Ctrl-C back: the next one breaks off what is being saved - if anything is to be saved.

        Before training begins, the state is not complete. A rank that alone has an exception cannot save,
        since all ranks take part in that.
        """
        self._leave()
        if not self._stops and (self._agreement is None or trainer.world_size > 1):
            save_no_more(trainer)
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand all signals back."""
        self.close()

    def close(self) -> None:
        """Hand all signals back; the grace period is over. For whoever called the trainer."""
        self._leave()
        if self._watch is not None:
            self._watch.close()
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        self._watch = self._trainer = None
        self._previous = {}

    def _leave(self) -> None:
        if self._agreement is not None:
            self._agreement.leave()

    # ---- signals -----------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        if self._watch is None or self._asked_at is not None:
            return
        for number in self._watch.signals:
            previous = signal.signal(number, self._on_signal)
            self._previous.setdefault(number, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._watch is None or self._watch.process != os.getpid():
            return _in_child(number)
        trainer, now = self._trainer, time.monotonic()
        assert trainer is not None
        several = trainer.world_size > 1
        if self._asked_at is not None:
            if number == signal.SIGINT and not (several and now - self._asked_at < _SAME_KEY_PRESS):
                raise KeyboardInterrupt
            return
        self._asked_at = now
        training = trainer.training or (several and trainer.state.fn == "fit" and trainer.validating)
        exact = (
            getattr(trainer.train_dataloader, "waiting", False) and not trainer.fit_loop._should_accumulate()
        )
        if self._agreement is None or not training or (exact and not several):
            raise _exception_for(number)
        self._agreement.ask(number)
        _log.info(
            "stopping at the end of this step%s", "; Ctrl-C again stops at once" * (number == signal.SIGINT)
        )


class QuietEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over batches without its question before each of them whether rank 0 got a SIGTERM.

    It is a broadcast whose answer the host waits for, and knows of no signal that another rank got.
    """

    def _broadcast_sigterm_tensor(self) -> None:
        """`GracefulStop` makes it needless."""


def with_quiet_loop(trainer: Trainer) -> Trainer:
    """A trainer, not yet used, whose ranks are stopped by `GracefulStop` alone."""
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = QuietEpochLoop(trainer, loop.min_steps, loop.max_steps)
    return trainer


class _SignalThread:
    """Learns of signals whatever the main thread does, speaks with the other ranks, keeps the grace period.

    Args:
        grace_period: seconds.
        signals: those that mean something here.
    """

    def __init__(self, grace_period: float, signals: frozenset[int]) -> None:
        self.agreement: StopAgreement | None = None
        self.signals = signals
        self.process = os.getpid()
        self._grace_period = grace_period
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._ours.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="graceful-stop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        signal.set_wakeup_fd(self._previous)
        self._ours.close()  # the other end is then ready, and empty
        self._thread.join()
        self._theirs.close()

    def _run(self) -> None:
        deadline: float | None = None
        while True:
            ready, _, _ = select.select([self._theirs], [], [], _LOOK_EVERY)
            numbers = self._theirs.recv(64) if ready else b""
            if ready and not numbers:
                return
            known = {*numbers} & self.signals
            if self.agreement is not None:
                for number in known:
                    self.agreement.ask(number)
                self.agreement.look()
                known |= {self.agreement.reason} - {None}  # another rank got it
            if deadline is None and signal.SIGTERM in known:
                deadline = time.monotonic() + self._grace_period
            if deadline is not None and time.monotonic() > deadline:
                sys.stderr.write(
                    "onn: terminated: not done with the step and its checkpoint within "
                    f"{self._grace_period:g} seconds (GracefulStop.grace_period); --resume goes on from the "
                    "checkpoint before\n"
                )
                sys.stderr.flush()
                os._exit(128 + signal.SIGTERM)


def _signals() -> frozenset[int]:
    requeue = REQUEUE_SIGNALS if SLURMEnvironment.detect() else ()
    return frozenset((signal.SIGTERM, signal.SIGINT, *requeue))


def _exception_for(number: int | None) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SIGTERMException()


def _in_child(number: int) -> None:
    """In a process that was forked off: a loader worker leaves Ctrl-C to its parent."""
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
