"""Licences of the sources: the files found in the archives, and a table of what came from where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datamodules.quickstart.archives import Archive, read_members
from datamodules.quickstart.manifest import Manifest
from datamodules.quickstart.part import Part

LICENCES_FOLDER = "LICENSES"


def keep_licences(archive: Archive, path: Path, stage: Path) -> None:
    """Copy the archive's licence files to `LICENSES/<package>/` in the stage."""
    folder = stage / LICENCES_FOLDER / archive.package
    folder.mkdir(parents=True)
    for name, content in read_members(path, *archive.licence_files).items():
        (folder / PurePosixPath(name).name).write_bytes(content)


def write_sources(folder: Path, parts: Sequence[Part], manifest: Manifest) -> None:
    """Write `LICENSES/SOURCES.md`: one row for each part that comes from an archive."""
    rows = [
        "# Sources of the quickstart data",
        "",
        "| part | contents | package | version | licence | archive | sha256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        record = manifest.parts.get(part.name)
        if part.archive is None or record is None:
            continue
        source = part.archive
        rows.append(
            f"| {part.name} | {source.contents} | {source.package} | {source.version} | {source.licence} "
            f"| {record.source} | `{record.source_sha256}` |"
        )
    target = folder / LICENCES_FOLDER / "SOURCES.md"
    text = "\n".join(rows) + "\n"
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", newline="\n")
