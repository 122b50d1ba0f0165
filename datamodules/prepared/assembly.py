"""A data set as a whole: assembled from finished shards, verified byte by byte, its tokenizer read.

Notable:
- Shards are gathered from the indexes beside them, by task and number: nothing but the folder decides.
- All of the tokenizer's files are copied, those that come with the packages as well, so that a set can be
  read where jieba or the built-in inventory are of another version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.prepared.durable import write_durably
from datamodules.prepared.index import SHARD_SUFFIX, DamagedDataError, ShardIndex, index_path
from datamodules.prepared.manifest import (
    SHARDS_FOLDER,
    TOKENIZER_FILES,
    TOKENIZER_FOLDER,
    Manifest,
    ShardRecord,
    TokenizerRecord,
)
from datamodules.text.tokenizer import DualTokenizer
from datamodules.text.words import jieba_dictionary

_DAMAGES_NAMED = 5


def write_manifest(
    folder: str | Path,
    tokenizer: DualTokenizer,
    sources: list[Any],
    records: list[Any],
    config: dict[str, Any],
) -> Manifest:
    """Make a data set out of a folder of finished shards: copy the tokenizer, gather, write the manifest.

    Args:
        folder: the data set, with its shards in `shards/`.
        tokenizer: that all of them were encoded with.
        sources, records, config: as in `Manifest`.
    Raises:
        FileNotFoundError: if a shard has no index, i.e. is not finished.
        DamagedDataError: if a shard or index is damaged.
        OSError: if the disk is full or cannot be written.
    """
    folder = Path(folder)
    manifest = Manifest(
        tokenizer=_write_tokenizer(folder / TOKENIZER_FOLDER, tokenizer),
        shards=tuple(_gather(shard) for shard in _shards_in(folder / SHARDS_FOLDER)),
        sources=sources,
        records=records,
        config=config,
    )
    manifest.write(folder)
    return manifest


def read_tokenizer(folder: str | Path) -> DualTokenizer:
    """The tokenizer that a data set carries.

    Raises:
        FileNotFoundError: if there is no manifest or a file of the tokenizer is missing.
        DamagedDataError: if one is damaged.
        ValueError: if this installation would give other ids.
    """
    folder = Path(folder)
    record = Manifest.read(folder).tokenizer
    paths = {name: folder / TOKENIZER_FOLDER / TOKENIZER_FILES[name] for name in record.files}
    tokenizer = DualTokenizer.from_files(
        {name: path.read_bytes() for name, path in paths.items()}, record.max_words, record.hashed_words
    )
    if tokenizer.fingerprint != record.fingerprint:
        raise ValueError(
            f"'{folder}' was encoded by tokenizer {record.fingerprint}, this installation makes "
            f"{tokenizer.fingerprint} of its files: install the version of onn_lightning that prepared it, "
            "or prepare it again"
        )
    return tokenizer


def verify(folder: str | Path, full: bool = True) -> Manifest:
    """Check a data set.

    Args:
        folder: the data set.
        full: read every byte and compare all checksums; False: manifest, presence and sizes alone.
    Returns:
        Its manifest.
    Raises:
        FileNotFoundError: if something is missing.
        DamagedDataError: if something is damaged; names the first few files.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    if full:
        damaged = [
            str(path)
            for path, sha256 in _checksums(folder, manifest)
            if not path.is_file() or _file_sha256(path) != sha256
        ]
        if damaged:
            raise DamagedDataError(
                f"{len(damaged)} files are not as they were written, among them "
                f"{', '.join(damaged[:_DAMAGES_NAMED])}: restore them from a copy, or prepare the set again"
            )
    return manifest


def _checksums(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, str]]:
    for name, sha256 in manifest.tokenizer.files.items():
        yield folder / TOKENIZER_FOLDER / TOKENIZER_FILES[name], sha256
    for shard in manifest.shards:
        path = folder / SHARDS_FOLDER / shard.name
        yield path, shard.sha256
        yield index_path(path), shard.index_sha256


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards_in(folder: Path) -> list[Path]:
    """Finished and unfinished ones, by task and number."""
    if not folder.is_dir():
        return []
    shards = [path for path in folder.iterdir() if path.suffix == SHARD_SUFFIX and path.name[0] != "."]
    return sorted(shards, key=lambda path: ([int(part) for part in re.findall(r"\d+", path.stem)], path.name))


def _gather(shard: Path) -> ShardRecord:
    index = ShardIndex.read(shard)
    if shard.stat().st_size != index.bytes:
        raise DamagedDataError(
            f"'{shard}' has {shard.stat().st_size} bytes, it was written with {index.bytes}: prepare it again"
        )
    return ShardRecord(
        name=shard.name,
        source=index.source,
        bytes=index.bytes,
        sha256=index.sha256,
        index_sha256=_file_sha256(index_path(shard)),
        documents=index.documents,
        tokens=index.tokens,
        modalities=index.modalities,
    )


def _write_tokenizer(folder: Path, tokenizer: DualTokenizer) -> TokenizerRecord:
    """Write all files that the tokenizer depends on, those that are built in as well."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = dict(tokenizer.files)
    if "vocabulary" not in contents:
        contents["vocabulary"] = tokenizer.vocabulary.to_json()
    if "words" not in contents:
        contents["words"] = jieba_dictionary()
    for name, content in contents.items():
        write_durably(folder / TOKENIZER_FILES[name], content)
    return TokenizerRecord(
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        num_words=tokenizer.num_words,
        max_words=tokenizer.max_words,
        hashed_words=tokenizer.hashed_words,
        files={name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)},
    )
