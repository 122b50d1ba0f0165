"""`PreparedSource`: the documents of a prepared data set, or of a folder that more of them are put into.

Notable:
- A document comes as it was prepared: texts encoded, media in their compressed form, values as they were;
  modalities take them as they take raw ones.
- In memory are the manifests and, of shards that were read, a few numbers a record batch; a document is
  found by bisection. Shards are opened when they are read, and only so many at a time.
- A folder of data sets is read in the order of names. With `follow` it may grow: a set that appears with a
  name behind all others is added at the end, so documents keep their numbers.
- Copies for loader workers know the same documents, and open what they read themselves.
"""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.items import OPENS_PATHS
from datamodules.prepared.durable import PARTIAL_SUFFIX
from datamodules.prepared.index import REMEDY, DamagedDataError
from datamodules.prepared.layout import TokenLayout
from datamodules.prepared.manifest import (
    MANIFEST_NAME,
    SHARDS_FOLDER,
    TOKENIZER_FOLDER,
    Manifest,
    ShardRecord,
)
from datamodules.prepared.shard import Shard
from datamodules.sources import Source
from onn_lightning.document import Document
from onn_lightning.modality import BadSampleError, Modality

log = logging.getLogger(__name__)

_MAX_OPEN_SHARDS = 64  # a map holds a file handle; a process has about a thousand


class PreparedSource(Source):
    """What `onn prepare` made.

    Args:
        path: a prepared data set, or a folder of them; names that are hidden or end in `.partial` are not
            looked at, nor are folders without a manifest.
        weight: share of the tokens of the training mixture.
        source: only the documents of this one of the sources that were prepared together; None: all.
        follow: the folder may grow while it is read; every document is then read once, not in epochs.
    """

    def __init__(
        self, path: str | Path, weight: float = 1.0, source: str | None = None, follow: bool = False
    ) -> None:
        super().__init__(weight)
        self.path = Path(path)
        self.source = source
        self.follow = follow
        self._refused: set[str] = set()
        self._expected: str | None = None  # fingerprint of the tokenizer
        self._shards: dict[int, Shard] = {}
        self._open: OrderedDict[int, None] = OrderedDict()  # numbers of shards, the longest unused first

    @cached_property
    def _parts(self) -> _Parts:
        """The sets that are known; found at the first use."""
        parts = _Parts()
        if (self.path / MANIFEST_NAME).is_file():
            if self.follow:
                raise ValueError(
                    f"'{self.path}' is one prepared data set, which never grows: leave out `follow`, or give "
                    "the folder that further sets are put into"
                )
            self._add(self.path, parts)
            return parts
        if not self.path.is_dir():
            raise FileNotFoundError(
                f"prepared data '{self.path}' does not exist: run `onn prepare`, or correct `path`"
            )
        for name in self._names():
            self._add(self.path / name, parts)
        if not parts.folders and not self.follow:
            raise FileNotFoundError(
                f"'{self.path}' is no prepared data set (it has no {MANIFEST_NAME}), and holds none: run "
                "`onn prepare` to its end, or correct `path`"
            )
        return parts

    def __len__(self) -> int:
        parts = self._parts
        if not parts.documents and not self.follow:
            what = "no document" if self.source is None else f"no document of source '{self.source}'"
            raise ValueError(f"prepared data '{self.path}' holds {what}: prepare another corpus")
        return parts.documents

    def __getitem__(self, index: int) -> Document:
        shard, number = self._shard_of(index)
        document = shard.document(number)
        for modality, data, _ in document:
            if isinstance(data, str) and modality in OPENS_PATHS:
                raise BadSampleError(
                    f"{self.describe(index)}: its {modality} is a path, and a data set must not choose what "
                    "is read; prepare it again"
                )
        return document

    def describe(self, index: int) -> str:
        shard, number = self._shard_of(index)
        try:
            return f"{shard.path}, document {number} ({shard.id(number)})"
        except (OSError, DamagedDataError):  # whoever asks has another error to tell of
            return f"{shard.path}, document {number}"

    def indices_with(self, modality: str) -> Iterator[int]:
        parts = self._parts
        for place, end in enumerate(parts.shard_ends):
            _, record = parts.shards[place]
            if modality in record.modalities:
                for number in self._shard(place).documents_with(modality):
                    yield end - record.documents + number

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """Refuse another tokenizer than the texts were encoded with.

        Raises:
            ValueError: naming the fingerprints of both, and what to do.
        """
        if (text := modalities.get("text")) is not None:
            tokenizer = getattr(text, "tokenizer", None)
            self._expected = getattr(tokenizer, "fingerprint", f"none ({type(text).__name__})")
            for folder, manifest in self._parts.folders.values():
                self._check_tokenizer(folder, manifest)

    def fingerprint(self, documents: int | None = None) -> str:
        """Their number, and a digest of the checksums of their shards."""
        parts = self._parts
        number = parts.documents if documents is None else documents
        if number not in parts.fingerprints:
            digest = hashlib.sha256()
            for _, shard in parts.shards[: bisect_right(parts.shard_ends, number)]:
                digest.update(shard.sha256.encode())
            parts.fingerprints[number] = f"{number} ({digest.hexdigest()[:16]})"
        return parts.fingerprints[number]

    @property
    def block_ends(self) -> Sequence[int]:
        return tuple(self._parts.part_ends) if self.follow else (len(self),)

    @property
    def follows(self) -> bool:
        return self.follow

    def refresh(self) -> bool:
        """Look for data sets that were added.

        Raises:
            FileNotFoundError, ValueError: if a new one is damaged, or of another tokenizer.
        """
        if not self.follow:
            return False
        parts = self._parts
        known, last = parts.documents, max(parts.folders, default="")
        for name in self._names():
            if name in parts.folders or name in self._refused:
                continue
            if name > last:
                self._add(self.path / name, parts)
                last = name
            else:
                self._refused.add(name)
                log.warning(
                    "'%s' is not read: it appeared after '%s' but sorts before it, and documents keep their "
                    "numbers; give it a name behind all others",
                    self.path / name,
                    last,
                )
        return parts.documents > known

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}, "_open": OrderedDict()}

    def _names(self) -> list[str]:
        """Names of the complete data sets in the folder."""
        return sorted(
            entry.name
            for entry in os.scandir(self.path)
            if not entry.name.startswith(".")
            and not entry.name.endswith(PARTIAL_SUFFIX)
            and os.path.isfile(os.path.join(entry.path, MANIFEST_NAME))
        )

    def _add(self, folder: Path, parts: _Parts) -> None:
        manifest = Manifest.read(folder)
        self._check_tokenizer(folder, manifest)
        if self.source is not None and self.source not in manifest.sources:
            raise ValueError(f"'{folder}' has no source '{self.source}', it has {manifest.sources}")
        chosen = [shard for shard in manifest.shards if self.source in (None, shard.source)]
        parts.add(folder, manifest, chosen)

    def _check_tokenizer(self, folder: Path, manifest: Manifest) -> None:
        if "text" not in manifest.totals:
            return
        theirs = manifest.tokenizer
        if self._expected is None:
            self._expected = theirs.fingerprint
        if theirs.fingerprint != self._expected:
            raise ValueError(
                f"'{folder}' was prepared with tokenizer {theirs.fingerprint}, the text modality (or the set "
                f"before it) has {self._expected} (characters-words-rules): ids would be other text. "
                f"Give the modality the files in '{folder / TOKENIZER_FOLDER}' (`vocabulary`, `words`, "
                f"`user_words`), max_words = {theirs.max_words} and hashed_words = {theirs.hashed_words}, or "
                "prepare the data again"
            )

    def _shard_of(self, index: int) -> tuple[Shard, int]:
        parts = self._parts
        if not 0 <= index < parts.documents:
            raise IndexError(f"document {index} of prepared data '{self.path}', which has {parts.documents}")
        place = bisect_right(parts.shard_ends, index)
        return self._shard(place), index - parts.shard_ends[place] + parts.shards[place][1].documents

    def _shard(self, place: int) -> Shard:
        shard = self._shards.get(place)
        if shard is None:
            folder, record = self._parts.shards[place]
            shard = Shard(folder / SHARDS_FOLDER / record.name, self._parts.layouts[folder])
            if (shard.index.sha256, shard.index.documents) != (record.sha256, record.documents):
                raise DamagedDataError(f"'{shard.path}' is not the shard that the manifest names: {REMEDY}")
            self._shards[place] = shard
        if place in self._open:
            self._open.move_to_end(place)
        else:
            self._open[place] = None
            if len(self._open) > _MAX_OPEN_SHARDS:
                oldest, _ = self._open.popitem(last=False)
                self._shards[oldest].close()
        return shard


@dataclass
class _Parts:
    """The data sets of a source, in order.

    Args:
        folders: folder and manifest of each, by name.
        part_ends: documents in all of them up to and including each; without those that hold none.
        layouts: of the tokens of each, by folder.
        shards: folder and record of every shard.
        shard_ends: documents in all shards up to and including each.
        documents: in all.
        fingerprints: of the first so many documents.
    """

    folders: dict[str, tuple[Path, Manifest]] = field(default_factory=dict)
    part_ends: list[int] = field(default_factory=list)
    layouts: dict[Path, TokenLayout] = field(default_factory=dict)
    shards: list[tuple[Path, ShardRecord]] = field(default_factory=list)
    shard_ends: list[int] = field(default_factory=list)
    documents: int = 0
    fingerprints: dict[int, str] = field(default_factory=dict)

    def add(self, folder: Path, manifest: Manifest, shards: Sequence[ShardRecord]) -> None:
        """Put the chosen shards of a set at the end."""
        before = self.documents
        self.folders[folder.name] = (folder, manifest)
        self.layouts[folder] = manifest.layout
        for shard in shards:
            self.documents += shard.documents
            self.shards.append((folder, shard))
            self.shard_ends.append(self.documents)
        if self.documents > before:
            self.part_ends.append(self.documents)
