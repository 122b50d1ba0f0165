"""The training loader: packed tokens a second from warm prepared data, padding, time to resume.

Notable:
- Throughput is that of one loader worker as the training process sees it: everything is in it, reading,
  packing, collating and the way to the main process, which does nothing with the batches.
- Short documents are the hard case: what a document costs counts, not what a token costs. So real text is
  measured whole (chapters, scenes) and cut into pieces of log-normal length.
- Resume is timed on a source of 10^8 documents, from a state at its beginning and from one far inside. Such
  a state is made of a real one by moving its numbers: reading half of them first would take days.

    from benchmarks.data_loader import measure_padding, measure_resume, measure_throughput
"""

from __future__ import annotations

import copy
import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.omni import OmniDataModule
from datamodules.prepared import PreparedSource, ShardWriter, TokenLayout, write_manifest
from datamodules.sources import Source
from datamodules.text import TextModality
from onn_lightning.document import Document

SHORT, LONG = 40, 300
"""Median characters of a document; both with a sigma of 1, a third of them beyond 1.5 times that."""

_WARM_BATCHES = 60
_BATCHES_PER_ROUND = 60
_ROUNDS = 9


@dataclass(frozen=True)
class Throughput:
    """Packed tokens a second with one loader worker, padding not counted; medians over rounds.

    Args:
        whole: of documents as they are.
        long, short: of documents of log-normal length, median `LONG` and `SHORT` characters.
    """

    whole: float
    long: float
    short: float


@dataclass(frozen=True)
class Padding:
    """Fraction of a batch's places that hold no token, with the defaults of `OmniDataModule`.

    Args:
        whole, long, short: as in `Throughput`.
    """

    whole: float
    long: float
    short: float


@dataclass(frozen=True)
class Resume:
    """Seconds from an unread state to the first batch; medians over rounds.

    Args:
        begun: of a state of the first few batches.
        middle: of one in the middle of 10^8 documents.
        other_readers: of the same, after eight readers, gone on from by one.
        state_bytes: size of that state in a checkpoint, eight readers together.
    """

    begun: float
    middle: float
    other_readers: float
    state_bytes: int


def measure_throughput(texts: Sequence[Path], characters: int = 4_000_000) -> Throughput:
    """Time one worker over prepared text.

    Args:
        texts: UTF-8 files of prose.
        characters: of each prepared set, at least.
    """
    text = TextModality()
    return Throughput(
        *(_tokens_per_second(text, texts, median, characters) for median in (None, LONG, SHORT))
    )


def measure_padding(texts: Sequence[Path], batches: int = 150) -> Padding:
    """Count the padding of training batches.

    Args:
        texts: UTF-8 files of prose.
        batches: counted, after as many that are not.
    """
    text = TextModality()
    fractions = []
    for median in (None, LONG, SHORT):
        with tempfile.TemporaryDirectory() as folder:
            _prepare(Path(folder), text, texts, median, 4_000_000)
            module = _module(text, PreparedSource(folder), num_workers=0)
            counted = islice(module.train_dataloader(), batches, 2 * batches)
            used = [batch.num_tokens / batch.modality_ids.numel() for batch in counted]
            fractions.append(1 - sum(used) / len(used))
    return Padding(*fractions)


def measure_resume(rounds: int = 5) -> Resume:
    """Time resumes; see `Resume`."""
    text = TextModality(max_words=1000)
    source = Endless()
    loader = _module(text, source, num_workers=0).train_dataloader()
    for _ in islice(loader, 20):
        pass
    begun = loader.state_dict()
    middle = _moved(begun, len(source) // 2)
    eight = copy.deepcopy(middle)
    eight["replicas"] = 8
    eight["places"] = [_as_reader(middle["places"][0], reader, 8) for reader in range(8)]

    def seconds(state: dict[str, Any]) -> float:
        taken = []
        for _ in range(rounds):
            module = _module(text, source, num_workers=0)
            start = time.perf_counter()
            loader = module.train_dataloader()
            loader.load_state_dict(state)
            next(iter(loader))
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    return Resume(seconds(begun), seconds(middle), seconds(eight), len(_saved(eight)))


class Endless(Source):
    """10^8 documents shorter than a row, made up of their numbers."""

    def __len__(self) -> int:
        return 10**8

    def __getitem__(self, index: int) -> Document:
        return [("text", f"document {index}: " + "word " * (index % 90))]

    def describe(self, index: int) -> str:
        return f"document {index}"

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter(range(len(self)))


def _module(text: TextModality, source: Source, num_workers: int) -> OmniDataModule:
    module = OmniDataModule([text], {"text": source}, num_workers=num_workers)
    module.setup("fit")
    return module


def _prepare(
    folder: Path, text: TextModality, texts: Sequence[Path], median: int | None, characters: int
) -> None:
    """Write a prepared set of at least so many characters.

    Args:
        folder: where to.
        text: whose tokenizer encodes.
        texts: files of prose, repeated as needed.
        median: cut them into documents of this median length; None: each file is one.
        characters: at least.
    """
    generator = np.random.default_rng(0)
    written = 0
    layout = TokenLayout.of(text.tokenizer)
    with ShardWriter(folder / "shards", "00000", layout) as writer:
        while written < characters:
            for path in texts:
                content = path.read_text("utf-8")
                written += len(content)
                start = 0
                while start < len(content):
                    length = generator.lognormal(np.log(median), 1) if median else len(content)
                    part = content[start : start + max(1, round(length))]
                    writer.add(f"{path.name}: {start}", [("text", text.tokenizer.encode(part), True)])
                    start += len(part)
    write_manifest(folder, text.tokenizer, sources=[], records=[], config={})


def _tokens_per_second(
    text: TextModality, texts: Sequence[Path], median: int | None, characters: int
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), text, texts, median, characters)
        batches = iter(_module(text, PreparedSource(folder), num_workers=1).train_dataloader())
        for _ in islice(batches, _WARM_BATCHES):
            pass
        rates = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            tokens = sum(batch.num_tokens for batch in islice(batches, _BATCHES_PER_ROUND))
            rates.append(tokens / (time.perf_counter() - start))
        return statistics.median(rates)


def _moved(state: dict[str, Any], by: int) -> dict[str, Any]:
    """A state as it would be that many documents further in."""
    moved = copy.deepcopy(state)
    for place in moved["places"]:
        place["buffered"][1] = [position + by for position in place["buffered"][1]]
        for source in place["sources"].values():
            source["lanes"] = [[start + by, step, stop] for start, step, stop in source["lanes"]]
            source["runs"] = [[position + by, first, stop] for position, first, stop in source["runs"]]
    return moved


def _as_reader(place: dict[str, Any], reader: int, readers: int) -> dict[str, Any]:
    """The place of one reader of many that is as far in its own lane as a lone one was in its."""
    own = copy.deepcopy(place)
    own["buffered"][1] = [position * readers + reader for position in own["buffered"][1]]
    for source in own["sources"].values():
        source["lanes"] = [[start * readers + reader, readers, None] for start, _, _ in source["lanes"]]
        source["runs"] = [[position * readers + reader, *rest] for position, *rest in source["runs"]]
    return own


def _saved(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()
