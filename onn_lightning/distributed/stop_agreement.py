"""`StopAgreement`: ranks agree on the batch after which all of them stop; no rank waits for its device.

Notable:
- Once a stop is asked for, each rank promises to go no further than the batch it is in. The furthest promise
  is where all stop. A rank that has come to its promise waits until it knows those of the others.
- A thread promises, not the training: a rank that waits inside a collective for another one promises too, so
  that waiting for promises cannot be a deadlock.
- Training pays a lock and a comparison a batch. The store of the process group is asked by the thread alone.
"""

from __future__ import annotations

import contextlib
import threading

from torch.distributed import Store

_ASKED = "stop/asked"


class StopAgreement:
    """Where to stop; `batch_done` is for the training, `look` for one other thread, `ask` for any.

    Args:
        store: a connection of its own to what all ranks see; None: there is one rank.
        rank: of this process.
        world_size: number of ranks.
    """

    def __init__(self, store: Store | None, rank: int, world_size: int) -> None:
        self._store, self._rank = store, rank
        # trainings of this process group so far, the same on all ranks: promises belong to one of them
        training = 1 if store is None else store.add(f"stop/trainings/{rank}", 1)
        self._promises = [f"stop/{training}/{other}" for other in range(world_size)]
        self._changed = threading.Condition()
        self._done = 0
        self._request: int | None = None
        self._promise: int | None = None
        self._target: int | None = None
        self._store_lost = False
        self.reason: int | None = None
        """The number that was given to the first `ask` of all ranks, once this rank knows of it."""

    def ask(self, reason: int) -> None:
        """Ask all ranks to stop.

        Args:
            reason: kept for them.
        """
        with self._changed:
            self._request = reason
            if self._store is None and self._target is None:
                self.reason, self._target = reason, self._done + 1

    def look(self) -> None:
        """Ask, promise and read the others' promises, whatever of it is due; comes back at once."""
        if self._store is None or self._target is not None or self._store_lost:
            return
        try:
            self._look(self._store)
        except RuntimeError:  # whoever holds the store is gone
            with self._changed:
                self._store_lost = True
                self._changed.notify_all()

    def _look(self, store: Store) -> None:
        if self._request is not None and self.reason is None:
            store.compare_set(_ASKED, "", str(self._request))
        if self._promise is None:
            if not store.check([_ASKED]):
                return
            self.reason = int(store.get(_ASKED))
            with self._changed:
                self._promise = self._done + 1
            store.set(self._promises[self._rank], str(self._promise))
        if store.check(self._promises):
            with self._changed:
                self._target = max(int(promise) for promise in store.multi_get(self._promises))
                self._changed.notify_all()

    def batch_done(self) -> bool:
        """Count a batch as done.

        Returns:
            Whether it is the one after which all stop, or one after it.
        """
        with self._changed:
            self._done += 1
            if self._promise is not None and self._done >= self._promise:
                self._changed.wait_for(lambda: self._target is not None or self._store_lost)
            return self._target is not None and self._done >= self._target

    def leave(self) -> None:
        """This rank trains no further: nobody need wait for its promise."""
        if self._store is None or self._promise is not None or self._store_lost:
            return
        with contextlib.suppress(RuntimeError):  # whoever holds the store may have gone first
            self._store.set(self._promises[self._rank], str(self._done))
