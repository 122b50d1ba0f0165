"""`Manifest`: what has been made, from what, and whether it is still intact.

Written anew beside and renamed after every part: a reader sees the old state or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.quickstart.archives import QuickstartError, file_sha256

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class PartRecord:
    """What one finished part consists of.

    Args:
        fingerprint: digest of everything that decides the part (archive, recipe, needed parts).
        source: name of the archive file, "" for a part without one.
        source_sha256: its checksum.
        documents: number of documents by split.
        outputs: folders and files of the part, relative to the data folder.
        files: number of files in them.
        bytes: their total size.
        outputs_sha256: digest of the sorted listing of paths and file checksums.
    """

    fingerprint: str
    source: str
    source_sha256: str
    documents: dict[str, int]
    outputs: list[str]
    files: int
    bytes: int
    outputs_sha256: str


@dataclass(frozen=True)
class Manifest:
    """State of a data folder.

    Args:
        parts: finished parts by name.
        skipped: reason for each optional part that could not be made here.
    """

    parts: dict[str, PartRecord] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def with_part(self, name: str, record: PartRecord) -> Manifest:
        """The manifest after a part was finished."""
        skipped = {other: reason for other, reason in self.skipped.items() if other != name}
        return Manifest(parts={**self.parts, name: record}, skipped=skipped)

    def with_skipped(self, name: str, reason: str) -> Manifest:
        """The manifest after a part turned out to be impossible here."""
        parts = {other: record for other, record in self.parts.items() if other != name}
        return Manifest(parts=parts, skipped={**self.skipped, name: reason})

    def save(self, folder: Path) -> None:
        """Replace the manifest in `folder`, durably and at once."""
        beside = folder / f".{MANIFEST_NAME}.partial"
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            json.dump(dataclasses.asdict(self), file, ensure_ascii=False, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / MANIFEST_NAME)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest in `folder`, or an empty one where there is none yet.

        Raises:
            QuickstartError: if the file is not a manifest.
        """
        path = folder / MANIFEST_NAME
        if not path.exists():
            return cls()
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            parts = {name: PartRecord(**record) for name, record in state["parts"].items()}
            return cls(parts=parts, skipped=dict(state["skipped"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise QuickstartError(
                f"{path} is not a manifest of the quickstart data ({error}); delete it and run the same "
                "command again"
            ) from error


@dataclass(frozen=True)
class Listing:
    """Files, bytes and digest of a set of outputs."""

    files: int
    bytes: int
    sha256: str


def list_outputs(folder: Path, outputs: Sequence[str]) -> Listing:
    """Read every file of the outputs; missing ones make another digest, not an error.

    Args:
        folder: data folder or stage.
        outputs: files and folders relative to it.
    """
    digest = hashlib.sha256()
    files = size = 0
    for output in sorted(outputs):
        top = folder / output
        for path in sorted([top] if top.is_file() else top.rglob("*")):
            if path.is_file():
                files += 1
                size += path.stat().st_size
                digest.update(f"{path.relative_to(folder).as_posix()}\t{file_sha256(path)}\n".encode())
    return Listing(files=files, bytes=size, sha256=digest.hexdigest())
