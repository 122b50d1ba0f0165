"""`RankWatchdog`: a rank that dies, hangs or fails is named by the others, which stop within a set time.

Notable:
- A thread of each rank tells the others how far the training is, not merely that the process runs, and
  looks for a verdict (`distributed.heartbeats`). Nothing is asked of the device, the training never waits.
- A rank that has stood still for too long reads the signs of life of all. Those behind the others are named,
  with what they are doing, and print where their threads are; then every process ends, since its main thread
  cannot be called back out of a collective.
- A rank watches the next one for death, so that the store is asked for little however many ranks there are.
- A rank that fails says so before it ends: the others would wait for it in a collective.
- All ranks at once waiting for data is no fault: a run may follow data that somebody has yet to write.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from onn_lightning.checkpoint.going_on import GoesOnFrom
from onn_lightning.distributed.heartbeats import LOADING, Heartbeats, Progress, Verdict, judge
from onn_lightning.distributed.own_store import connect

EXIT_RANK_LOST = 3
"""Exit code of a process that ends because of another rank."""

_OF_LOST_PEERS = ("connection closed", "connection reset", "broken pipe", "remote process", "nccl", "gloo")


class RankWatchdog(Callback):
    """Ends all ranks of a distributed run where one of them cannot go on; nothing to do for one process.

    A rank that hangs is named, and all end, within one and a half times its limit.

    Args:
        timeout: seconds that a rank may spend in one piece of work: a batch's data, forward, backward,
            optimizer step, a batch of validation. Raise it where ranks follow data that comes rarely.
        slow_timeout: the same for what takes longer: all before the first batch is done (compiling), saving,
            the beginning and end of a validation or of the run.
    Raises:
        ValueError: if one of them is not above 0.
    """

    def __init__(self, timeout: float = 600.0, slow_timeout: float = 1800.0) -> None:
        if not (timeout > 0 and slow_timeout > 0):
            raise ValueError(
                f"RankWatchdog: timeout is {timeout} and slow_timeout {slow_timeout} seconds, both must be "
                "above 0"
            )
        self.timeout, self.slow_timeout = timeout, slow_timeout
        self._thread: _WatchdogThread | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Why this rank had to end because of another one, None where it had not."""
        return None if self._thread is None else self._thread.verdict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch."""
        if trainer.world_size > 1 and dist.is_initialized() and self._thread is None:
            beats = Heartbeats(connect(), trainer.global_rank, trainer.world_size)
            self._thread = _WatchdogThread(beats, trainer, self.timeout, self.slow_timeout)
            self._thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch no longer."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others, or find out which of them it comes from."""
        together = isinstance(exception, SIGTERMException | KeyboardInterrupt | GoesOnFrom)
        if self._thread is not None and not together:
            self._thread.main_failed(exception)

    def close(self) -> None:
        """End the thread. For whoever called the trainer."""
        if self._thread is not None:
            self._thread.close()

    # ---- what moves --------------------------------------------------------------------------------

    def _move(self, phase: str, slow: bool = False) -> None:
        if self._thread is not None:
            self._thread.moved(phase, slow)

    def on_train_batch_start(self, *_: Any) -> None:
        """A batch is there."""
        self._move("forward")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Its loss is there."""
        self._move("backward")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Its gradients are there."""
        self._move("optimizer step")

    def on_train_batch_end(self, *_: Any) -> None:
        """A batch is done; other callbacks may still do something with it."""
        self._move("between batches", slow=True)
        if self._thread is not None:
            self._thread.begun = True

    def on_save_checkpoint(self, *_: Any) -> None:
        """A checkpoint is collected, written, and waited for."""
        self._move("saving", slow=True)

    def on_validation_start(self, *_: Any) -> None:
        """A validation begins, often with loaders of its own."""
        self._move("validation", slow=True)

    def on_validation_batch_start(self, *_: Any) -> None:
        """A batch of it is there."""
        self._move("validation")

    def on_validation_batch_end(self, *_: Any) -> None:
        """A batch of it is done; after the last one figures are gathered."""
        self._move("validation", slow=True)

    def on_test_batch_start(self, *_: Any) -> None:
        """As `on_validation_batch_start`."""
        self._move("test", slow=True)

    def on_predict_batch_start(self, *_: Any) -> None:
        """As `on_validation_batch_start`."""
        self._move("prediction", slow=True)

    def on_train_end(self, *_: Any) -> None:
        """The last checkpoint and reports follow."""
        self._move("end of training", slow=True)


class _WatchdogThread(threading.Thread):
    """Sends and reads signs of life, and ends the process where there is a verdict.

    Args:
        beats: connection to the other ranks.
        trainer: told how far it is.
        timeout, slow_timeout: as `RankWatchdog`.
    """

    def __init__(self, beats: Heartbeats, trainer: Trainer, timeout: float, slow_timeout: float) -> None:
        super().__init__(name="rank-watchdog", daemon=True)
        self.verdict: Verdict | None = None
        self.begun = False  # the first batch is done
        self._beats, self._trainer = beats, trainer
        self._limits = (timeout, slow_timeout)
        self._interval = min(2.0, timeout / 20)
        self._moved = (0, "start", True, time.monotonic())
        self._beat = 0
        self._closed, self._failed, self._explained = threading.Event(), threading.Event(), threading.Event()
        self._error: BaseException | None = None

    # ---- called by the main thread -----------------------------------------------------------------

    def moved(self, phase: str, slow: bool) -> None:
        """Another piece of work has begun."""
        self._moved = (self._moved[0] + 1, phase, slow, time.monotonic())

    def main_failed(self, error: BaseException) -> None:
        """The main thread ends with an error; comes back once it is known whose fault that is."""
        self._error = error
        self._failed.set()
        if self.is_alive():
            self._explained.wait(12 * self._interval)

    def close(self) -> None:
        """End the thread; the others hear that this rank has come to its end."""
        self._closed.set()
        self._failed.set()  # it may sleep
        self.join(2 * self._interval)

    # ---- the thread --------------------------------------------------------------------------------

    def run(self) -> None:
        """Until closed."""
        try:
            verdict = self._watch()
        except RuntimeError:
            verdict = self._without_store()
        if verdict is None:
            return
        self.verdict = verdict
        self._explained.set()
        # the main thread may be on its way out by itself, which leaves logs and records complete
        if self._closed.wait(4 * self._interval) or (self._failed.is_set() and self._closed.wait(30)):
            return
        if self._beats.rank in verdict.ranks:
            faulthandler.dump_traceback(all_threads=True)
        sys.stderr.write(f"onn: error: {verdict.text}; rank {self._beats.rank} ends too\n")
        sys.stderr.flush()
        os._exit(EXIT_RANK_LOST)

    def _watch(self) -> Verdict | None:
        neighbour, seen, since = (self._beats.rank + 1) % self._beats.world_size, -1, time.monotonic()
        while not self._closed.is_set():
            self._send()
            if self._failed.is_set():
                return self._explain()
            if (verdict := self._beats.verdict()) is not None:
                return verdict
            other = self._beats.of(neighbour)
            if other is None or other.beat != seen or other.left:
                seen, since = -1 if other is None else other.beat, time.monotonic()
            suspicious = time.monotonic() - since > max(6 * self._interval, self._limits[0] / 4)
            suspicious |= self._now().still > min(self._limits)
            if suspicious and (verdict := self._judge()) is not None:
                return self._beats.accuse(verdict)
            self._failed.wait(self._interval)
        with contextlib.suppress(RuntimeError):
            self._beats.send(self._now(left=True))
        return None

    def _judge(self) -> Verdict | None:
        first = self._beats.of_all()
        for _ in range(4):
            time.sleep(self._interval)
            self._send()
        return judge(first, self._beats.of_all(), self._limits)

    def _explain(self) -> Verdict | None:
        """What the main thread's error comes from: None where it is this rank's own."""
        text = f"{type(self._error).__name__}: {(str(self._error).splitlines() or [''])[0][:300]}"
        of_peer = isinstance(self._error, dist.DistError) or any(
            word in str(self._error).lower() for word in _OF_LOST_PEERS
        )
        verdict = (self._beats.verdict() or self._judge()) if of_peer else None
        if verdict is None:
            self._beats.accuse(Verdict((self._beats.rank,), f"rank {self._beats.rank} failed: {text}"))
            if self._beats.rank == 0:
                time.sleep(2 * self._interval)  # it may hold the store: the others are to read it first
        else:
            verdict = self._beats.accuse(verdict)
        self._explained.set()
        return verdict

    def _without_store(self) -> Verdict | None:
        """Who holds the store is gone: at the end of a run that may be, before it nobody can go on."""
        if self._closed.wait(4 * self._interval):
            return None
        return Verdict((0,), "rank 0: no sign of life, the store that it or torchrun holds is gone")

    def _send(self) -> None:
        self._beat += 1
        self._beats.send(self._now())

    def _now(self, left: bool = False) -> Progress:
        moves, phase, slow, since = self._moved
        if getattr(self._trainer.train_dataloader, "waiting", False):
            phase, slow = LOADING, False
        still = time.monotonic() - since
        slow = slow or not self.begun
        return Progress(moves, self._trainer.global_step, phase, still, slow, self._beat, left)
