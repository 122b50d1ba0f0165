"""`fetch`: make the quickstart data in a folder; safe to repeat, safe to kill.

Notable:
- Every part is written to a stage inside the folder, moved into place, and only then entered in
  the manifest. A run that finds a part entered, unchanged in recipe and intact on disk leaves it.
- The stage is on the same file system as its target, so that moving is renaming.
- Speech needs a compiled synthesiser that does not exist for every platform. Where it cannot be
  used, the part is skipped, the reason stands in `Manifest.skipped`, and the next run tries again:
  text and images are complete without it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from datamodules.quickstart.archives import ChecksumError, Progress, QuickstartError, file_sha256, obtain
from datamodules.quickstart.chinese import chinese_part
from datamodules.quickstart.digits import digits_part
from datamodules.quickstart.english import english_part
from datamodules.quickstart.licences import keep_licences, write_sources
from datamodules.quickstart.manifest import Manifest, PartRecord, list_outputs
from datamodules.quickstart.part import Part, Workplace
from datamodules.quickstart.speech import speech_part
from datamodules.quickstart.words import words_part


def quickstart_parts() -> tuple[Part, ...]:
    """All parts, in the order in which they are made."""
    return (chinese_part(), english_part(), words_part(), digits_part(), speech_part())


def fetch(to: Path, progress: Progress | None = None, parts: Sequence[Part] | None = None) -> Manifest:
    """Bring the quickstart data in a folder up to date.

    Args:
        to: data folder, made if need be; archives are kept in its `cache`.
        progress: receives one line of text for every step.
        parts: what to make; by default everything the quickstart uses.
    Returns:
        The manifest, also written to `to/manifest.json`.
    Raises:
        ChecksumError: if an archive is not the pinned one.
        QuickstartError: if a part that is not optional cannot be made.
    """
    tell = progress if progress is not None else lambda line: None
    chosen = quickstart_parts() if parts is None else tuple(parts)
    to.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.load(to)
    for part in chosen:
        try:
            record = _bring_up_to_date(part, to, manifest, tell)
        except ChecksumError:
            raise
        except QuickstartError as error:
            if not part.optional:
                raise
            manifest = manifest.with_skipped(part.name, str(error))
            tell(f"{part.name}: skipped: {error}")
        else:
            manifest = manifest.with_part(part.name, record)
            counts = ", ".join(f"{split} {count}" for split, count in record.documents.items())
            tell(f"{part.name}: ready ({counts})")
        manifest.save(to)
    shutil.rmtree(to / ".stage", ignore_errors=True)
    write_sources(to, chosen, manifest)
    return manifest


def _bring_up_to_date(part: Part, to: Path, manifest: Manifest, progress: Progress) -> PartRecord:
    fingerprint = _fingerprint(part, manifest)
    record = manifest.parts.get(part.name)
    if record is not None and record.fingerprint == fingerprint:
        if list_outputs(to, record.outputs).sha256 == record.outputs_sha256:
            return record
        progress(f"{part.name}: files are missing or changed: making them again")
    archive = obtain(part.archive, to / "cache", progress) if part.archive is not None else None
    progress(f"{part.name}: preparing")
    stage = to / ".stage" / part.name
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    documents = part.build(Workplace(archive=archive, finished=to, stage=stage))
    if part.archive is not None and archive is not None:
        keep_licences(part.archive, archive, stage)
    outputs = _entries(stage)
    listing = list_outputs(stage, outputs)
    for output in {*outputs, *(record.outputs if record is not None else ())}:
        _remove(to / output)
    for output in outputs:
        (to / output).parent.mkdir(parents=True, exist_ok=True)
        (stage / output).replace(to / output)
    return PartRecord(
        fingerprint=fingerprint,
        source="" if archive is None else archive.name,
        source_sha256="" if archive is None else file_sha256(archive),
        documents=documents,
        outputs=outputs,
        files=listing.files,
        bytes=listing.bytes,
        outputs_sha256=listing.sha256,
    )


def _fingerprint(part: Part, manifest: Manifest) -> str:
    missing = [name for name in part.needs if name not in manifest.parts]
    if missing:
        raise QuickstartError(f"part '{part.name}' needs {missing}, which must be made before it")
    facts = {
        "recipe": part.recipe,
        "archive": sorted(part.archive.checksums.values()) if part.archive is not None else [],
        "needs": [manifest.parts[name].outputs_sha256 for name in part.needs],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _entries(stage: Path) -> list[str]:
    """What is moved as a whole: files at the top, and whatever lies directly in a top folder."""
    entries = [top for top in stage.iterdir() if top.is_file()]
    entries += [child for top in stage.iterdir() if top.is_dir() for child in top.iterdir()]
    return sorted(entry.relative_to(stage).as_posix() for entry in entries)


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
