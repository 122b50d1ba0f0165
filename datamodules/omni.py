"""`OmniDataModule`: any number of sources of any modalities, mixed, packed, sharded, resumable.

Notable:
- Training: an endless mixture by share of tokens; every (rank, worker) reads its own documents;
  checkpoints hold the exact place in it, from which any number of ranks and workers can go on.
- The shares may change while training runs (`set_mixture_weights`), and a training source may be one
  that grows (`Source.follows`): what is added to it is read without a restart.
- Held-out: one loader a source, every document exactly once, the same batches whatever the number of
  ranks; `Batch.source` carries the name.
- Before the first batch, one sample of each modality is encoded, on every rank: from then on every
  batch holds every modality that occurs in the data, if need be with zero tokens. A source that
  grows may bring a modality later; it then shows its form by itself (`Modality.placeholder`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import islice
from typing import NoReturn

import torch
from lightning.pytorch import LightningDataModule

from datamodules.bad_samples import BadSampleLog
from datamodules.held_out import HeldOutStream
from datamodules.loader import HeldOutLoader, TrainLoader
from datamodules.packing import Collator, prototype_of, split_document
from datamodules.sources import Source
from datamodules.stream import DocumentPieces, Replica, TrainStream
from datamodules.weights import MixtureWeights
from onn_lightning.batch import Segment
from onn_lightning.modality import BadSampleError, Modality

log = logging.getLogger(__name__)

_SPLITS_OF_STAGE = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}
_PROBES = 16  # documents of each source tried for a first readable sample of a modality


class OmniDataModule(LightningDataModule):
    """Documents of interleaved modalities, packed into rows of a fixed length.

    Args:
        modalities: the kinds of data of the run; the model is given the same objects.
        train: sources of the training mixture by name, mixed by their weights.
        validation: sources of `onn validate` and of validation during training, each on its own.
        test: sources of `onn test`.
        predict: sources of `onn predict`.
        row_length: T, tokens in a row.
        rows_per_batch: B, rows in a batch of one rank.
        batches_per_epoch: training batches after which Lightning counts an epoch; the data is an
            endless stream, so it changes nothing but the rhythm of whatever happens every epoch.
        num_workers: loader processes of a rank; 0: load in the main process.
        seed: of the order of documents and of the draws of rows.
        buffer_size: pieces (up to a row each, encoded) among which a reader draws its rows: larger
            shuffles wider and pads less, and takes that much more memory in each worker.
        max_pixels_per_batch: pixels of images and cells of spectrograms that a batch of one rank may
            hold; pieces that would exceed it wait for a later batch. None: any number.
        poll_seconds: how often a reader looks for new documents in a source that grows and has none; where
            no source has any, it waits until there are enough for a row.
        max_consecutive_bad: damaged samples in a row after which a reader stops the run.
    Raises:
        ValueError: if a number is out of range, or two modalities have the same name.
    """

    def __init__(
        self,
        modalities: list[Modality],
        train: dict[str, Source],
        validation: dict[str, Source] | None = None,
        test: dict[str, Source] | None = None,
        predict: dict[str, Source] | None = None,
        row_length: int = 512,
        rows_per_batch: int = 8,
        batches_per_epoch: int = 1000,
        num_workers: int = 0,
        seed: int = 0,
        buffer_size: int = 256,
        max_pixels_per_batch: int | None = None,
        poll_seconds: float = 10.0,
        max_consecutive_bad: int = 100,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("row_length", row_length, 2),
            ("rows_per_batch", rows_per_batch, 1),
            ("batches_per_epoch", batches_per_epoch, 1),
            ("num_workers", num_workers, 0),
            ("buffer_size", buffer_size, 1),
            ("max_consecutive_bad", max_consecutive_bad, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}")
        if max_pixels_per_batch is not None and max_pixels_per_batch < 1:
            raise ValueError(
                f"`max_pixels_per_batch` must be at least 1, or None, got {max_pixels_per_batch}"
            )
        if not 0 < poll_seconds < math.inf:
            raise ValueError(f"`poll_seconds` must be a positive number, got {poll_seconds}")
        self.modalities = modalities
        self._modalities = {modality.name: modality for modality in modalities}
        if len(self._modalities) != len(modalities):
            names = [modality.name for modality in modalities]
            raise ValueError(f"modalities {names} share a name: give each its own")
        self.splits: dict[str, dict[str, Source]] = {
            "train": train,
            "validation": validation or {},
            "test": test or {},
            "predict": predict or {},
        }
        self.row_length = row_length
        self.rows_per_batch = rows_per_batch
        self.batches_per_epoch = batches_per_epoch
        self.num_workers = num_workers
        self.seed = seed
        self.buffer_size = buffer_size
        self.max_pixels_per_batch = max_pixels_per_batch
        self.poll_seconds = poll_seconds
        self._weights = MixtureWeights({name: source.weight for name, source in train.items()})
        self._bad_samples = BadSampleLog(
            [f"{split}/{name}" for split, sources in self.splits.items() for name in sources],
            max_consecutive_bad,
            num_workers,
        )
        self._collator: Collator | None = None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: object, *_: object, **__: object) -> NoReturn:
        """Refused: Lightning's own makes an object as the file says it, which nobody should trust.

        Raises:
            RuntimeError: always; says how data goes on from a checkpoint.
        """
        raise RuntimeError(
            f"{checkpoint_path}: data is not made from a checkpoint; make {cls.__name__} from its config, "
            "and `trainer.fit(..., ckpt_path=...)` (onn fit --resume) sets it to the place in the file"
        )

    @property
    def bad_samples(self) -> dict[str, int]:
        """Damaged samples that this process skipped so far, by `split/source`."""
        return self._bad_samples.totals()

    @property
    def mixture_weights(self) -> dict[str, float]:
        """Weight of every training source now: its share of the tokens, relative to the others."""
        return self._weights.by_name

    def set_mixture_weights(self, weights: Mapping[str, float]) -> None:
        """Change the training mixture, from any callback; in a distributed run, on every rank alike.

        Takes effect at the next batch that is ordered: at once without loader workers, otherwise after
        the `2 * num_workers` batches that are under way. Shares are counted from then on: nothing is
        made up for. Checkpoints hold the weights; a config that was edited since overrides them.

        Args:
            weights: by source, of all or some sources; 0: none of it.
        Raises:
            ValueError: for an unknown source or an impossible weight.
        """
        self._weights.update(weights)

    def setup(self, stage: str) -> None:
        """Look at the sources of a stage and at one sample of each modality.

        Args:
            stage: "fit", "validate", "test" or "predict".
        Raises:
            FileNotFoundError: if a corpus is not there.
            ValueError: if a corpus is empty or was made for other modalities, if all samples of a modality
                that were tried are bad, or if a held-out source is one that grows.
        """
        sources = {
            f"{split}/{name}": source
            for split in _SPLITS_OF_STAGE[stage]
            for name, source in self.splits[split].items()
        }
        if stage == "fit" and not self.splits["train"]:
            raise ValueError("there is no training source: name at least one under `train`")
        for name, source in sources.items():
            self._look_at(name, source)
        prototypes = {}
        for name, modality in self._modalities.items():
            prototype = self._probe(modality, sources)
            if prototype is None and any(source.follows for source in sources.values()):
                placeholder = modality.placeholder()
                prototype = None if placeholder is None else prototype_of(placeholder)
            if prototype is None:
                log.warning("no source for '%s' holds modality '%s': batches are without it", stage, name)
            else:
                prototypes[name] = prototype
        self._collator = Collator(prototypes, list(self._modalities), self.row_length, self.rows_per_batch)

    def _look_at(self, name: str, source: Source) -> None:
        """Check one source and say how large it is."""
        source.check(self._modalities)
        count = len(source)
        if source.follows and not name.startswith("train/"):
            raise ValueError(
                f"source '{name}' grows while it is read: held-out data must stay the same; give it a corpus "
                "that does not"
            )
        if not count and not source.follows:
            raise ValueError(f"source '{name}' holds no documents: correct its path, or leave it out")
        log.info("source '%s': %d documents%s", name, count, ", may grow" if source.follows else "")

    def _probe(self, modality: Modality, sources: Mapping[str, Source]) -> Segment | None:
        """Encode the first readable sample of a modality; None where no source has one."""
        trouble: BadSampleError | None = None
        for source in sources.values():
            for index in islice(source.indices_with(modality.name), _PROBES):
                try:
                    for item in source[index]:
                        if item[0] == modality.name and len(segment := modality.encode(item[1])):
                            split_document([segment], self.row_length)  # refuses what no row can hold
                            return prototype_of(segment)
                except BadSampleError as error:
                    trouble = error
        if trouble is not None:
            raise ValueError(f"no sample of modality '{modality.name}' can be used; the last: {trouble}")
        return None

    def train_dataloader(self) -> TrainLoader:
        stream = TrainStream(
            self.splits["train"],
            self._reader("train"),
            self._ready_collator(),
            self.seed,
            self.buffer_size,
            self.poll_seconds,
        )
        return TrainLoader(
            stream,
            self._weights,
            self._replica(),
            self.batches_per_epoch,
            self.num_workers,
            torch.cuda.is_available(),
        )

    def val_dataloader(self) -> list[HeldOutLoader]:
        return self._held_out("validation")

    def test_dataloader(self) -> list[HeldOutLoader]:
        return self._held_out("test")

    def predict_dataloader(self) -> list[HeldOutLoader]:
        return self._held_out("predict")

    def teardown(self, stage: str) -> None:
        """Say in one line how many samples were skipped."""
        skipped = {name: count for name, count in self.bad_samples.items() if count}
        if skipped:
            log.warning("bad samples skipped: %s", ", ".join(f"{name} {n}" for name, n in skipped.items()))

    def _held_out(self, split: str) -> list[HeldOutLoader]:
        read, collator, replica = self._reader(split), self._ready_collator(), self._replica()
        streams = [
            HeldOutStream(name, source, read, collator, self.buffer_size, replica)
            for name, source in self.splits[split].items()
        ]
        return [HeldOutLoader(stream, self.num_workers, torch.cuda.is_available()) for stream in streams]

    def _reader(self, split: str) -> DocumentPieces:
        return DocumentPieces(
            self._modalities, self.row_length, self._bad_samples, split, self.max_pixels_per_batch
        )

    def _ready_collator(self) -> Collator:
        if self._collator is None:
            raise RuntimeError("call `setup(stage)` before asking for a loader; a Trainer does so by itself")
        return self._collator

    def _replica(self) -> Replica:
        sharding = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        if sharding is None:
            return Replica()
        # not the global rank: ranks that share a model by tensor parallelism need the same data
        return Replica(sharding["rank"], sharding["num_replicas"])
