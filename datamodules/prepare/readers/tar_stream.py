"""`TarStream`: the members of a tar archive, read once from front to back, never extracted.

Notable:
- tarfile decodes the header blocks; the walk from one to the next is ours, since its own ends silently
  at a damaged header or a missing end, and reads extended headers of any size into memory.
- What a member's name or kind could do to this machine (paths out of the archive, links, devices,
  pickles) is refused, never tried.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from datamodules.items import BadItemError
from datamodules.prepare.readers.files import empty_file

HEADER_BYTES = tarfile.BLOCKSIZE
_EXTENSION_BYTES = 1 << 20  # of a long name or extended header
_NAME_CHARACTERS = 1000
_LEAVES = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")  # Windows paths, too
_SPARSE = "sparse"
_PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".ckpt", ".joblib", ".dill", ".p")


@dataclass(frozen=True)
class Member:
    """One member of an archive.

    Args:
        name: its path, normalised; as written where it is refused.
        size: of its content, bytes.
        offset: byte of the archive at which its header begins.
        refusal: why it is not read; None: it is a regular file of a good name.
    """

    name: str
    size: int
    offset: int
    refusal: BadItemError | None = None


class TarStream:
    """An archive that is read from front to back.

    Args:
        chunks: its bytes, decompressed.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._bytes = _Bytes(chunks)
        self._unread = 0  # of the member, with its padding
        self._seen = 0  # members, folders too
        self._has_end = False

    def members(self) -> Iterator[Member]:
        """Every member but folders; the content of the last one given may be read by `content`.

        Raises:
            BadItemError: if the archive is damaged or cut short; what came before it is good.
        """
        extended: dict[str, str] = {}  # what headers before a member say about it
        while (header := self._next_header()) is not None:
            info, offset = header
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                if info.size > _EXTENSION_BYTES:
                    raise _damaged(f"an extended header of {info.size} bytes at byte {offset}")
                content = self.content(info.size)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    extended["path"] = content.split(b"\0")[0].decode("utf-8", "surrogateescape")
                else:
                    extended |= _fields(content)
            elif info.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
                if "size" in extended:
                    self._expect(info, _size(extended["size"]))
                self._seen += 1
                if not info.isdir():
                    yield _member(info, offset, extended)
                extended = {}

    def content(self, size: int) -> bytes:
        """The content of the member that was given last.

        Args:
            size: of the member; the caller has judged that it can be held.
        Raises:
            BadItemError: if the archive ends in it.
        """
        data = self._bytes.read(size)
        self._unread -= len(data)
        if len(data) < size:
            raise _cut_short()
        return data

    def finish(self) -> None:
        """Make sure, after the last member, that the archive is whole.

        Raises:
            BadItemError: if it is empty, has no end mark, or goes on after it.
        """
        if self._seen == 0:
            raise empty_file()
        if not self._has_end:
            raise BadItemError("truncated file", "the archive has no end mark: perhaps it is cut short")
        while block := self._bytes.read(HEADER_BYTES):
            if block.strip(b"\0"):
                raise _damaged("more data after its end; join archives with `tar --concatenate`")

    def _expect(self, info: tarfile.TarInfo, size: int) -> None:
        info.size = size
        empty = info.islnk() or info.issym() or info.isdir() or info.isdev()
        self._unread = 0 if empty else -(-size // HEADER_BYTES) * HEADER_BYTES

    def _next_header(self) -> tuple[tarfile.TarInfo, int] | None:
        if self._bytes.skip(self._unread) < self._unread:
            raise _cut_short()
        offset = self._bytes.position
        block = self._bytes.read(HEADER_BYTES)
        if not block.strip(b"\0"):
            self._has_end = len(block) == HEADER_BYTES
            return None
        if len(block) < HEADER_BYTES:
            raise _cut_short()
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _damaged(f"no header at byte {offset} ({error})") from error
        if info.size < 0:
            raise _damaged(f"a negative size at byte {offset}")
        self._expect(info, info.size)
        return info, offset


def _member(info: tarfile.TarInfo, offset: int, extended: Mapping[str, str]) -> Member:
    name = extended.get("path", info.name)
    sparse = info.type == tarfile.GNUTYPE_SPARSE or _SPARSE in extended
    refusal: BadItemError | None = None
    path = posixpath.normpath(name)
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if info.issym() or info.islnk():
        refusal = BadItemError("tar member is a link", "links are not followed; store the file itself")
    elif sparse or not info.isreg():
        refusal = BadItemError("tar member is no file", "only regular files are read; store them as such")
    elif _LEAVES.search(name):
        refusal = BadItemError(
            "unsafe tar member", "its path leaves the archive; store it with a relative path"
        )
    elif shown != name or "\0" in name or path == "." or len(name) > _NAME_CHARACTERS:
        refusal = BadItemError("unsafe tar member", "its name is not UTF-8, empty or endless; rename it")
    elif path.lower().endswith(_PICKLES):
        refusal = BadItemError(
            "pickle in tar", "pickles run code when they are read, so they never are; store plain data"
        )
    return Member(shown[:_NAME_CHARACTERS] if refusal else path, info.size, offset, refusal)


def _fields(data: bytes) -> dict[str, str]:
    """What is used of a pax header: lines of "length key=value"."""
    fields: dict[str, str] = {}
    while data:
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        line, data = data[len(digits) + 1 : length], data[length:]
        key, equals, value = line.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _damaged("an extended header that cannot be read")
        if key in (b"path", b"size"):
            fields[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse"):
            fields[_SPARSE] = ""
    return fields


def _size(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise _damaged(f"a member of size {digits[:50]!r}")
    return int(digits)


class _Bytes:
    """A stream of chunks as a stream of bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = memoryview(b"")
        self.position = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, or what is left."""
        return b"".join(self._pieces(size))

    def skip(self, size: int) -> int:
        """Pass over bytes; returns how many there were."""
        return sum(len(piece) for piece in self._pieces(size))

    def _pieces(self, size: int) -> Iterator[memoryview]:
        while size:
            if not self._chunk:
                self._chunk = memoryview(next(self._chunks, b""))
                if not self._chunk:
                    return
            piece = self._chunk[:size]
            self._chunk = self._chunk[len(piece) :]
            size -= len(piece)
            self.position += len(piece)
            yield piece


def _cut_short() -> BadItemError:
    return BadItemError("truncated file", "the archive is cut short; fetch it again")


def _damaged(what: str) -> BadItemError:
    return BadItemError("damaged file", f"the archive has {what}; what follows is lost: fetch it again")
