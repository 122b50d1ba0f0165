"""`TarReader`: tar shards of captioned images and sounds, in the manner of webdataset.

Notable:
- Neighbouring members of one key are one document; the key is the path up to the first dot of the
  file's name, so that "000.0.png", "000.1.png" and "000.json" belong together.
- Documents are known by the byte of their first header and their key ("web: a.tar@1024 000"): keys
  may come again.
- A document is given out once the next key shows that it is complete, so that damage costs only what
  comes after it and the document in which it lies.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from datatrove.data import Document

from datamodules.items import BadItemError
from datamodules.prepare.readers.base import BadSample, WorkUnit
from datamodules.prepare.readers.builder import media_too_large, text_too_long
from datamodules.prepare.readers.compression import expanded
from datamodules.prepare.readers.file_reader import FileReader
from datamodules.prepare.readers.limits import Limits
from datamodules.prepare.readers.samples import CAPTION, RECORD, SampleLayout, assemble, given, suffix_of
from datamodules.prepare.readers.tar_stream import HEADER_BYTES, Member, TarStream

TAR_PATTERNS = ("*.tar", "*.tar.gz", "*.tgz", "*.tar.zst", "*.tzst")


class TarReader(FileReader):
    """Tar archives, plain or compressed (.gz, .zst).

    Args:
        path: an archive, or a folder of archives at any depth.
        layout: the order of media and caption, and which members they are.
        patterns: which files of the folder, matched from the right: "*.tar", "train/*.tar".
        limits: of a document and of the growth of compressed archives.
    """

    def __init__(
        self,
        path: str | Path,
        layout: SampleLayout = SampleLayout(),  # noqa: B008  # frozen
        patterns: Sequence[str] = TAR_PATTERNS,
        limits: Limits = Limits(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(path, patterns, limits)
        self.layout = layout

    def documents(self, file: BinaryIO, unit: WorkUnit, source: str) -> Iterator[Document | BadSample]:
        archive = TarStream(expanded(self.chunks(file), unit.path, self.limits))
        group: _Group | None = None
        for member in archive.members():
            place = f"{source}: {unit.path}@{member.offset}"
            if member.refusal is not None:
                yield BadSample(f"{place} {member.name}", member.refusal.kind, member.refusal.message)
                continue
            key, name = _split(member.name)
            if name.startswith(".") or not self.layout.reads(name):
                continue
            if group is not None and group.key != key:
                yield self._finished(group, source)
                group = None
            if group is None:
                group = _Group(key, f"{place} {key}")
            self._add(group, name, member, archive)
        if group is not None:
            yield self._finished(group, source)
        archive.finish()

    def _add(self, group: _Group, name: str, member: Member, archive: TarStream) -> None:
        if group.problem is not None:
            return
        suffix = suffix_of(name)
        limit = {CAPTION: self.limits.text_bytes, RECORD: self.limits.record_bytes}.get(suffix)
        kind = suffix if limit else "media"
        group.held[kind] += member.size + HEADER_BYTES
        if name in group.files:
            group.give_up(BadItemError("duplicate member", f"'{member.name}' occurs twice; remove one"))
        elif limit is None and group.held[kind] > self.limits.media_bytes + HEADER_BYTES:
            group.give_up(media_too_large(name, self.limits))
        elif limit is not None and group.held[kind] > limit + HEADER_BYTES:
            group.give_up(text_too_long(self.limits))
        else:
            group.files[name] = archive.content(member.size)

    def _finished(self, group: _Group, source: str) -> Document | BadSample:
        try:
            if group.problem is not None:
                raise group.problem
            files = {name: given(data) for name, data in group.files.items()}
            return assemble(files, self.layout, self.limits).document(group.place, source)
        except BadItemError as error:
            return BadSample(group.place, error.kind, error.message)


@dataclass
class _Group:
    """Members of one key, gathered until another key comes.

    Args:
        key: of all of them.
        place: of the first of them, the id of the document.
        files: content by file name.
        held: bytes by kind of member, with their headers, so that many empty ones count, too.
        problem: why the document is given up.
    """

    key: str
    place: str
    files: dict[str, bytes] = field(default_factory=dict)
    held: Counter[str] = field(default_factory=Counter)
    problem: BadItemError | None = None

    def give_up(self, problem: BadItemError) -> None:
        """Remember why, and let go of what is held."""
        self.problem = problem
        self.files.clear()


def _split(path: str) -> tuple[str, str]:
    """A member's key, and its name within its folder."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.split(".")[0]), name
