"""Loading a Hugging Face data set: one way for the source that training reads and for the pipeline's reader.

Notable:
- Code out of a data set is never run: `trust_remote_code` is never given, and the builder that reads
  pickles is refused.
- `datasets` is imported when something is loaded, not before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.items import BadItemError


@dataclass(frozen=True)
class HuggingFaceData:
    """Where a data set comes from.

    Args:
        path: a folder made by `save_to_disk`; a folder of data files; a builder ("parquet", "json",
            "imagefolder", ...) with `data_files` or `data_dir`; or a name on the hub.
        name: configuration of the data set.
        split: which part of it, slices allowed: "train", "train[:1%]".
        data_files, data_dir: for builders and for folders.
        revision: of a data set on the hub; pin it, so that it stays the same.
    Raises:
        ValueError: if the builder reads pickles.
    """

    path: str
    name: str | None = None
    split: str = "train"
    data_files: str | Sequence[str] | None = None
    data_dir: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.path == "pandas":
            raise ValueError("the builder 'pandas' reads pickles, which run code: convert them to Parquet")

    def load(self, streaming: bool = False) -> Any:
        """The data set, memory-mapped, or as a stream.

        Raises:
            FileNotFoundError: if it is not there.
            ConnectionError: if it is on the hub, and the hub cannot be reached.
            ValueError: if it cannot be loaded.
        """
        import datasets
        import pyarrow as pa

        folder = Path(self.path)
        try:
            if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
                saved = datasets.load_from_disk(self.path)
                return saved[self.split] if isinstance(saved, datasets.DatasetDict) else saved
            return datasets.load_dataset(
                self.path,
                self.name,
                split=self.split,
                data_files=self.data_files,
                data_dir=self.data_dir,
                revision=self.revision,
                streaming=streaming,
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"data set '{self.path}' is not there ({error}): correct `path`"
            ) from error
        except ConnectionError as error:
            raise ConnectionError(
                f"data set '{self.path}' is no folder here, and the hub cannot be reached ({error}): "
                "correct `path`, or download it first"
            ) from error
        except (LookupError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
            raise ValueError(
                f"data set '{self.path}', split '{self.split}', cannot be loaded ({error}): correct the "
                "config or mend the data; files that are partly damaged can be prepared (`onn prepare`) with "
                "JsonLinesReader, ParquetReader, ..., which skip what is bad"
            ) from error

    def media_root(self) -> Path:
        """The folder that media paths are relative to: the data set's own, or the library's cache."""
        for own in (self.path, self.data_dir):
            if own is not None and Path(own).is_dir():
                return Path(own)
        import datasets

        return Path(datasets.config.HF_CACHE_HOME)


def relative_media(value: Any, root: Path) -> Any:
    """Builders of media folders give absolute paths: made relative to the root, which they must be below.

    Raises:
        BadItemError: if the path leaves the root; the message is the same on every machine.
    """
    if isinstance(value, Mapping) and isinstance(path := value.get("path"), str) and os.path.isabs(path):
        base, target = os.path.abspath(root), os.path.normpath(path)
        if os.path.commonpath([base, target]) != base:
            raise BadItemError(
                "unsafe path", f"path {path!r} leaves the folder of the data set; move it there or set `root`"
            )
        return {**value, "path": os.path.relpath(target, base)}
    return value
