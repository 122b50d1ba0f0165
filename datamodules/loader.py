"""`TrainLoader` and `HeldOutLoader`: the streams as Lightning wants them.

Notable:
- The stream is endless; an "epoch" is a fixed number of its batches, and the next epoch goes on where
  the last one stopped. `__len__` is that number: without a length Lightning fetches one batch ahead,
  and a checkpoint would be one batch further in the data than the model is.
- They hold a torch loader rather than being one: Lightning rebuilds and warns about loaders it
  recognises, and each new epoch of a plain loader would begin the training data anew.
- In a distributed run only rank 0 writes the checkpoint, so `state_dict` gathers the places of all
  ranks (all ranks call it, as they do for every part of a checkpoint).
- A worker that dies is reported as such. Torch does so where it notices the death first; where it
  happens to be receiving that worker's tensors, all one would see is a bare EOFError.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from datamodules.stream import HeldOutStream, TrainStream
from onn_lightning.batch import Batch


class TrainLoader:
    """Endless training batches with an exactly resumable place.

    Args:
        stream: what is read.
        batches_per_epoch: length of an epoch, in batches.
        num_workers: loader processes; 0: load in the main process.
        pin_memory: put batches into page-locked memory, for copies to a GPU.
    """

    def __init__(
        self, stream: TrainStream, batches_per_epoch: int, num_workers: int, pin_memory: bool
    ) -> None:
        self.batches_per_epoch = batches_per_epoch
        self.num_workers = num_workers
        self.replica = stream.replica
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # called by torchdata 0.11
            self._loader = StatefulDataLoader(
                stream,
                batch_size=None,  # the stream gives whole batches
                num_workers=num_workers,
                pin_memory=pin_memory,
                # its own generator: the loader would draw its base seed from the global one, and a resumed
                # run, which makes one loader more, would then differ in every later random number
                generator=torch.Generator().manual_seed(stream.seed),
            )
        self._iterator: Iterator[Batch] | None = None

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.batches_per_epoch):
            if self._iterator is None:
                self._iterator = _naming_lost_workers(self._loader)
            yield next(self._iterator)

    def state_dict(self) -> dict[str, Any]:
        """Places of all ranks in the data: plain data, the same on every rank."""
        states: dict[int, Any] = {self.replica.number: self._loader.state_dict()}
        if self.replica.count > 1:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, states)
            states = {number: state for one in gathered for number, state in one.items()}
        return {"num_workers": self.num_workers, "replicas": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the places of `state_dict`.

        Raises:
            ValueError: if the number of data-parallel ranks or of workers is not what it was.
        """
        saved = len(state["replicas"]), state["num_workers"]
        here = self.replica.count, self.num_workers
        if saved != here:
            raise ValueError(
                "cannot resume the data stream: it was saved by {} data-parallel rank(s) with {} loader "
                "worker(s) each, now there are {} with {}; use the saved numbers, or start a new run from "
                "the weights".format(*saved, *here)
            )
        self._iterator = None
        self._loader.load_state_dict(state["replicas"][self.replica.number])


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
        return _naming_lost_workers(self._loader)


def _naming_lost_workers(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The loader's batches; a connection that breaks becomes an error that says what broke.

    Raises:
        RuntimeError: if a worker was lost.
    """
    try:
        yield from loader
    except (EOFError, ConnectionError) as error:
        # without workers, or passed on by one ("Caught EOFError in DataLoader worker"), it is the data's own
        if loader.num_workers == 0 or "DataLoader worker" in str(error):
            raise
        raise RuntimeError(
            "lost a DataLoader worker: it was killed, most often for want of memory; lower `num_workers` or "
            "`buffer_size`, then run the same command again to resume"
        ) from error
