"""`Manifest`: what a prepared data set holds, how it was made, and with which tokenizer.

```
<data set>/
  manifest.json            counts, checksums, tokenizer, sources, what each step dropped, config
  shards/00000-000.arrow   documents, with 00000-000.json beside each
  tokenizer/               the tokenizer's characters and words: the set explains itself
```
Notable:
- A folder is a data set once its manifest is there; it is written last.
- Its bytes depend on the corpus and the config alone: no times, no machine, one order.
- Reading checks the form and that every shard is there with its size, not its content: `verify` does.
- `assembly` writes it; here is what it says and how it is read.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from datamodules.prepared.durable import write_durably
from datamodules.prepared.index import (
    REMEDY,
    SHARD_SUFFIX,
    DamagedDataError,
    ModalityCount,
    index_path,
    summed,
)
from datamodules.prepared.layout import TokenLayout

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SHARDS_FOLDER = "shards"
TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_FILES = {"vocabulary": "vocabulary.json", "words": "words.txt", "user_words": "user_words.txt"}
"""Names of the tokenizer's files in its folder, by argument name."""
_FILE_NAME = re.compile(r"[\w-][\w.-]*")

T = TypeVar("T")


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that the texts were encoded with.

    Args:
        fingerprint: names everything that ids depend on.
        vocab_size: number of char ids.
        num_words: bound of the word ids.
        max_words, hashed_words: arguments of the tokenizer.
        files: SHA-256 of each of its files in the data set, by argument name.
    """

    fingerprint: str
    vocab_size: int
    num_words: int
    max_words: int | None
    hashed_words: int
    files: dict[str, str]


@dataclass(frozen=True)
class ShardRecord:
    """One shard.

    Args:
        name: of its file.
        source: name of the corpus that its documents are from.
        bytes, sha256: of the file.
        index_sha256: of the index beside it.
        documents, tokens: what it holds.
        modalities: counts by name.
    """

    name: str
    source: str
    bytes: int
    sha256: str
    index_sha256: str
    documents: int
    tokens: int
    modalities: dict[str, ModalityCount]


@dataclass(frozen=True)
class Manifest:
    """A prepared data set.

    Args:
        tokenizer: of its texts.
        shards: in the order of the documents.
        sources: what was prepared, plain JSON.
        records: what each step kept and dropped, plain JSON.
        config: of the preparation, plain JSON.
    """

    tokenizer: TokenizerRecord
    shards: tuple[ShardRecord, ...]
    sources: list[Any]
    records: list[Any]
    config: dict[str, Any]

    @property
    def layout(self) -> TokenLayout:
        """How its tokens are packed."""
        return TokenLayout(self.tokenizer.vocab_size, self.tokenizer.num_words)

    @cached_property
    def documents(self) -> int:
        """In all shards."""
        return sum(shard.documents for shard in self.shards)

    @cached_property
    def totals(self) -> dict[str, ModalityCount]:
        """Counts of all shards by modality."""
        return summed([shard.modalities for shard in self.shards])

    def write(self, folder: Path) -> None:
        """Write `folder/manifest.json`, the same bytes for the same manifest.

        Raises:
            OSError: if the disk is full or cannot be written.
        """
        data = {
            "version": FORMAT_VERSION,
            "documents": self.documents,
            "modalities": {name: asdict(count) for name, count in self.totals.items()},
            "tokenizer": asdict(self.tokenizer),
            "sources": self.sources,
            "records": self.records,
            "config": self.config,
            "shards": [asdict(shard) for shard in self.shards],
        }
        content = json.dumps(data, ensure_ascii=False, indent=1)
        # a lone surrogate (a name of a file that is no text) becomes its JSON escape
        write_durably(folder / MANIFEST_NAME, content.encode("utf-8", "backslashreplace") + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest of a data set, and the sizes of its shards.

        Raises:
            FileNotFoundError: if there is no manifest, or a shard is missing.
            DamagedDataError: if the manifest cannot be used, or a shard has another size.
        """
        path = folder / MANIFEST_NAME
        try:
            data = json.loads(path.read_bytes())
            version = data["version"]
            if version != FORMAT_VERSION:
                raise DamagedDataError(
                    f"'{path}' is of format {version!r}, this installation reads {FORMAT_VERSION}: update "
                    "onn_lightning, or prepare the data set again"
                )
            manifest = cls(
                tokenizer=_tokenizer_record(data["tokenizer"]),
                shards=tuple(_shard_record(shard) for shard in _of(list, data["shards"])),
                sources=_of(list, data["sources"]),
                records=_of(list, data["records"]),
                config=_of(dict, data["config"]),
            )
            totals = {name: ModalityCount(**count) for name, count in data["modalities"].items()}
            consistent = (manifest.documents, manifest.totals) == (data["documents"], totals)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"'{folder}' is no prepared data set, it has no {MANIFEST_NAME}: correct `path`, or run "
                "`onn prepare` to its end"
            ) from error
        except DamagedDataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise DamagedDataError(f"'{path}' is damaged ({error!r}): {REMEDY}") from error
        if not consistent:
            raise DamagedDataError(f"'{path}' is damaged: its shards do not add up to its totals; {REMEDY}")
        manifest._check_sizes(folder / SHARDS_FOLDER)
        return manifest

    def _check_sizes(self, shards: Path) -> None:
        sizes = {}
        if shards.is_dir():
            with os.scandir(shards) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
        for shard in self.shards:
            path = shards / shard.name
            for name in (shard.name, index_path(path).name):
                if name not in sizes:
                    raise FileNotFoundError(
                        f"'{shards / name}', which the manifest names, is missing: {REMEDY}"
                    )
            if sizes[shard.name] != shard.bytes:
                raise DamagedDataError(
                    f"'{path}' has {sizes[shard.name]} bytes, it was written with {shard.bytes}: {REMEDY}"
                )


def _tokenizer_record(data: dict[str, Any]) -> TokenizerRecord:
    record = TokenizerRecord(**data)
    _of(str, record.fingerprint)
    _of(int, record.hashed_words)
    if not set(_of(dict, record.files)) <= set(TOKENIZER_FILES):
        raise TypeError(f"tokenizer files {sorted(record.files)}")
    TokenLayout(_of(int, record.vocab_size), _of(int, record.num_words))
    return record


def _shard_record(data: dict[str, Any]) -> ShardRecord:
    counts = {name: ModalityCount(**count) for name, count in data["modalities"].items()}
    record = ShardRecord(**{**data, "modalities": counts})
    if not _FILE_NAME.fullmatch(_of(str, record.name)) or not record.name.endswith(SHARD_SUFFIX):
        raise TypeError(f"shard name {record.name!r}")
    _of(str, record.source)
    for number in (record.bytes, record.documents, record.tokens):
        if _of(int, number) < 0:
            raise TypeError(f"{number} in shard {record.name}")
    return record


def _of(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} where a {kind.__name__} is due")
    return value
