"""`Inspector`: takes batches from a DataModule's own loaders and looks at each.

Notable:
- What a training batch was drawn from is not written in it. The shares of the sources are therefore
  those of the loader's place in the data: of everything it has read, the buffer included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from datamodules import OmniDataModule
from onn_lightning.batch import Batch
from onn_lightning.inspection.counts import Counts, Totals, counts_of
from onn_lightning.inspection.pieces import PackedPiece, pieces_of
from onn_lightning.inspection.sheet import draw_sheet

STAGES = {"train": "fit", "validation": "validate", "test": "test", "predict": "predict"}
"""Lightning's stage for each split."""


@dataclass(frozen=True)
class Inspected:
    """One batch.

    Args:
        name: of the split; of held-out data `split/source`.
        number: of the batch, from 1.
        counts: of it.
        pieces: of it.
        sheet: the PNG that shows it.
    """

    name: str
    number: int
    counts: Counts
    pieces: list[PackedPiece]
    sheet: Path


class Inspector:
    """Inspects the first batches of a split.

    Args:
        data: not set up yet.
        split: of `STAGES`.
        num_batches: of each loader: held-out data has one a source.
        folder: where the PNGs go; made if need be.
    """

    def __init__(self, data: OmniDataModule, split: str, num_batches: int, folder: Path) -> None:
        self.split = split
        self.num_batches = num_batches
        self.folder = folder
        self._data = data
        self._modalities = {modality.name: modality for modality in data.modalities}
        self._counts = Counts()
        self._tokens: dict[str, float] = {}  # by source

    def batches(self) -> Iterator[Inspected]:
        """Take the batches, one after the other.

        Raises:
            ValueError: if the config has no data for the split, or it cannot be used.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sources = self._data.splits[self.split]
        if not sources:
            given = [split for split, some in self._data.splits.items() if some]
            raise ValueError(f"the config has no source under `{self.split}`; it has {', '.join(given)}")
        self._data.setup(STAGES[self.split])
        if self.split == "train":
            loader = self._data.train_dataloader()
            yield from self._look_at(loader, self.split)
            for place in loader.state_dict()["places"]:
                for (name, source), weight in zip(place["sources"].items(), place["weights"], strict=True):
                    self._tokens[name] = self._tokens.get(name, 0) + source["served"] * weight
            return
        loaders = {
            "validation": self._data.val_dataloader,
            "test": self._data.test_dataloader,
            "predict": self._data.predict_dataloader,
        }
        for name, held_out in zip(sources, loaders[self.split](), strict=True):
            for inspected in self._look_at(held_out, f"{self.split}/{name}"):
                self._tokens[name] = self._tokens.get(name, 0) + inspected.counts.tokens
                yield inspected

    def totals(self) -> Totals:
        """All that was taken so far."""
        everything = sum(self._tokens.values()) or 1
        return Totals(
            self._counts,
            {name: tokens / everything for name, tokens in self._tokens.items()},
            {name: count for name, count in self._data.bad_samples.items() if count},
        )

    def _look_at(self, loader: Iterable[Batch], name: str) -> Iterator[Inspected]:
        for number, batch in enumerate(islice(loader, self.num_batches), 1):
            pieces = pieces_of(batch, self._modalities)
            counts = counts_of(batch, pieces, self._modalities)
            self._counts += counts
            sheet = self.folder / f"{name.replace('/', '-')}-{number}.png"
            title = f"{name}, batch {number}: {counts.tokens:,} tokens, {counts.padding:.1%} padding"
            rows, row_length = batch.document_ids.shape
            draw_sheet(pieces, rows, row_length, title).save(sheet)
            yield Inspected(name, number, counts, pieces, sheet)
