"""`TrainLoader` and `HeldOutLoader`: the streams as Lightning wants them.

Notable:
- The stream is endless; an "epoch" is a fixed number of its batches, and the next epoch goes on where
  the last one stopped. `__len__` is that number: without a length Lightning fetches one batch ahead,
  and a checkpoint would be one batch further in the data than the model is.
- The main process orders batches from its readers in turn and keeps, of each, the place that came with
  its newest batch. The places of all ranks are the state. The same number of readers goes on from them
  as they are, bit for bit; for any other they are divided anew (see `places`): every sample once, none
  lost.
- They hold a torch loader rather than being one: Lightning rebuilds and warns about loaders it
  recognises, and each new epoch of a plain loader would begin the training data anew.
- In a distributed run only rank 0 writes the checkpoint, so `state_dict` gathers the places of all
  ranks (all ranks call it, as they do for every part of a checkpoint).
- A worker that dies is reported as such. Torch does so where it notices the death first; where it
  happens to be receiving that worker's tensors, all one would see is a bare EOFError.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler

from datamodules.held_out import HeldOutStream
from datamodules.identity import check_followed, check_identity, identity_of
from datamodules.places import ReaderPlace, divided, fresh_places
from datamodules.stream import BatchOrder, Delivery, Replica, TrainStream
from datamodules.weights import MixtureWeights
from onn_lightning.batch import Batch

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 2
"""Of the state; 1 was torchdata's and held to one number of ranks and workers."""


class TrainLoader:
    """Endless training batches with an exactly resumable place.

    Args:
        stream: what is read.
        weights: mixture weights; a change counts from the next batch that is ordered, which is
            `2 * num_workers` batches after those that were given out.
        replica: which share of the documents is read here.
        batches_per_epoch: length of an epoch, in batches.
        num_workers: loader processes; 0: load in the main process.
        pin_memory: put batches into page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        stream: TrainStream,
        weights: MixtureWeights,
        replica: Replica,
        batches_per_epoch: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.batches_per_epoch = batches_per_epoch
        self.num_workers = num_workers
        self.replica = replica
        self.waiting = False
        """Whether a batch is being waited for; an interruption then leaves the place in the data exact."""
        self._stream = stream
        self._weights = weights
        self._readers = max(1, num_workers)
        self._places = self._own(fresh_places(weights.by_name, self._readers * replica.count))
        self._orders = _Orders(self._readers, weights)
        self._loader: DataLoader[Delivery] = DataLoader(
            stream,
            sampler=self._orders,
            batch_size=None,  # the stream gives whole batches
            num_workers=num_workers,
            pin_memory=pin_memory,
            # its own generator: the loader would draw its base seed from the global one, and a resumed
            # run, which makes one loader more, would then differ in every later random number
            generator=torch.Generator().manual_seed(stream.seed),
        )
        self._iterator: Iterator[Delivery] | None = None

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.batches_per_epoch):
            yield self._next_batch()

    def _next_batch(self) -> Batch:
        self.waiting = True
        try:
            if self._iterator is None:
                self._orders.repeat()
                places = [ReaderPlace.from_plain(place) for place in self._places]
                self._stream.begin_at(places, self.replica.number * self._readers)
                self._iterator = _deliveries(self._loader, self._stream)
            delivery = next(self._iterator)
        except BaseException:
            self._iterator = None  # should anyone ask again: from the last batch that was given out
            raise
        finally:
            self.waiting = False
        self._places[self._orders.arrived()] = delivery.place
        return delivery.batch

    def _own(self, places: list[ReaderPlace]) -> list[dict[str, Any]]:
        """Those of this rank's readers, as plain data."""
        first = self.replica.number * self._readers
        return [place.plain() for place in places[first : first + self._readers]]

    def state_dict(self) -> dict[str, Any]:
        """Places of all ranks in the data: plain data, the same on every rank."""
        by_rank = {self.replica.number: self._places}
        if self.replica.count > 1:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, by_rank)
            by_rank = {number: places for one in gathered for number, places in one.items()}
        return {
            "format": FORMAT,
            "identity": identity_of(self._stream),
            "weights": self._weights.state_dict(),
            "replicas": self.replica.count,
            "orders": self._orders.state_dict(),
            "places": [place for number in sorted(by_rank) for place in by_rank[number]],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the places of `state_dict`, also with other numbers of ranks and workers.

        Raises:
            ValueError: if it was saved over other data or settings, or by an older version.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"cannot resume the data stream: its state has format {state.get('format', 1)}, this version "
                f"reads {FORMAT}; resume with the version that wrote it, or start a new run from the weights"
            )
        check_identity(state["identity"], self._stream)
        places = [ReaderPlace.from_plain(place) for place in state["places"]]
        check_followed(places, self._stream.sources)
        in_force = self._weights.load_state_dict(state["weights"])
        self._iterator = None
        now, then = self._readers * self.replica.count, len(places)
        if (now, self.replica.count) == (then, state["replicas"]):
            orders = state["orders"] if in_force else {**state["orders"], "weights": []}
        else:
            log.info("the data was read by %d readers (ranks x loader workers), now it is by %d", then, now)
            places, orders = divided(places, now), {"next_reader": 0, "weights": []}
        self._orders.load_state_dict(orders)
        self._places = self._own(places)


def _deliveries(loader: DataLoader[Delivery], stream: TrainStream) -> Iterator[Delivery]:
    """What the workers send; no method, or it would keep its own loader, and the workers, alive."""
    deliveries = iter(loader)  # held here, so that it ends its workers only after they have been told
    try:
        yield from _naming_lost_workers(deliveries, loader.num_workers)
    finally:
        stream.closed.fill_(1)  # for workers that wait for documents


class _Orders(Sampler[BatchOrder]):
    """Orders batches from the readers in turn, and remembers the orders until they are carried out.

    The loader calls it a sampler: what it samples are not documents but whole batches.

    Args:
        readers: of this rank.
        weights: read when a batch is ordered.
    """

    def __init__(self, readers: int, weights: MixtureWeights) -> None:
        self._readers = readers
        self._weights = weights
        self._next_reader = 0  # of the oldest order that is not carried out
        self._under_way: deque[tuple[float, ...]] = deque()  # weights of the orders given
        self._again: deque[tuple[float, ...]] = deque()  # weights of the orders to give once more

    def __iter__(self) -> Iterator[BatchOrder]:
        while True:
            weights = self._again.popleft() if self._again else self._weights.in_order
            reader = (self._next_reader + len(self._under_way)) % self._readers
            self._under_way.append(weights)
            yield BatchOrder(reader, weights)

    def arrived(self) -> int:
        """The oldest order was carried out.

        Returns:
            The reader that did it.
        """
        self._under_way.popleft()
        reader = self._next_reader
        self._next_reader = (reader + 1) % self._readers
        return reader

    def repeat(self) -> None:
        """Give the orders again that were not carried out: those who had them are gone."""
        self._again.extendleft(reversed(self._under_way))
        self._under_way.clear()

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "next_reader": self._next_reader,
            "weights": [list(weights) for weights in (*self._under_way, *self._again)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the `state_dict` of as many readers."""
        self._next_reader = state["next_reader"]
        self._under_way.clear()
        self._again = deque(map(tuple, state["weights"]))


class HeldOutLoader:
    """All batches of a held-out source, once an iteration.

    Args:
        stream: what is read.
        num_workers: loader processes; more than one would bring nothing but another order, so one is
            the most that is used.
        pin_memory: put batches into page-locked memory, for copies to a GPU.
    """

    def __init__(self, stream: HeldOutStream, num_workers: int, pin_memory: bool) -> None:
        self.stream = stream
        self._loader: DataLoader[Batch] = DataLoader(
            stream,
            batch_size=None,
            num_workers=min(1, num_workers),
            pin_memory=pin_memory,
            generator=torch.Generator(),  # leaves the global one alone; held-out data draws nothing
        )

    def __iter__(self) -> Iterator[Batch]:
        return _naming_lost_workers(iter(self._loader), self._loader.num_workers)


def _naming_lost_workers(batches: Iterator[T], num_workers: int) -> Iterator[T]:
    """What a loader gives; a connection that breaks becomes an error that says what broke.

    Raises:
        RuntimeError: if a worker was lost.
    """
    try:
        yield from batches
    except (EOFError, ConnectionError) as error:
        # without workers, or passed on by one ("Caught EOFError in DataLoader worker"), it is the data's own
        if num_workers == 0 or "DataLoader worker" in str(error):
            raise
        raise RuntimeError(
            "lost a DataLoader worker: it was killed, most often for want of memory; lower `num_workers` or "
            "`buffer_size`, then run the same command again to resume"
        ) from error
