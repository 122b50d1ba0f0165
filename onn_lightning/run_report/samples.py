"""`samples.json` and `results.json`: answers and held-out figures, as a run's end prints them.

Notable:
- A file holds the newest of each stage: those of a later validation take the place of those of an earlier
  one, those of a test stand beside them.
- Images and sounds are named, and shown as the tower is given them: a small PNG of their features.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onn_lightning.run_report.plain_json import Fields, UnreadableFileError, read_json, write_json

if TYPE_CHECKING:
    from onn_lightning.document import RawItem
    from onn_lightning.modality import Modality

SAMPLES, RESULTS = "samples.json", "results.json"
LARGEST_SIDE = 160
"""Of a picture, in pixels."""

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURE = 64 << 10


@dataclass(frozen=True)
class PromptItem:
    """One item of a prompt.

    Args:
        modality: of it.
        text: what was given; of a medium its name.
        picture: a medium as a PNG in base64, "" where there is none.
        caption: what the picture shows.
    """

    modality: str
    text: str
    picture: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Sample:
    """One answer.

    Args:
        source: where the document is from.
        prompt: what was given.
        answer: what the model wrote.
        expected: what the document says, "" where it goes on in any way.
        trouble: why there is no answer.
    """

    source: str
    prompt: tuple[PromptItem, ...]
    answer: str = ""
    expected: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Answers:
    """The answers of a stage.

    Args:
        model: which gave them: its step, or its checkpoint.
        samples: the answers.
    """

    model: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Results:
    """The held-out figures of a stage.

    Args:
        model: which was measured: its step, or its checkpoint.
        sources: figure by name, by source.
    """

    model: str
    sources: Mapping[str, Mapping[str, float]]


def save_samples(folder: Path, stage: str, model: str, samples: Sequence[Sample]) -> None:
    """Put the answers of a stage in place of its earlier ones."""
    content = {stage: {"model": model, "samples": [dataclasses.asdict(sample) for sample in samples]}}
    write_json(folder / SAMPLES, _others(folder / SAMPLES, stage) | content)


def save_results(folder: Path, stage: str, model: str, sources: Mapping[str, Mapping[str, float]]) -> None:
    """Put the held-out figures of a stage in place of its earlier ones."""
    content = {stage: {"model": model, "sources": {name: dict(row) for name, row in sources.items()}}}
    write_json(folder / RESULTS, _others(folder / RESULTS, stage) | content)


def load_samples(folder: Path) -> dict[str, Answers]:
    """The answers of a run folder, by stage.

    Raises:
        UnreadableFileError: if the file is missing or damaged.
    """
    fields = read_json(folder / SAMPLES)
    return {
        stage: Answers(
            fields.inner(stage).text("model"),
            tuple(_sample(sample) for sample in fields.inner(stage).objects("samples")),
        )
        for stage in fields.names()
    }


def load_results(folder: Path) -> dict[str, Results]:
    """The held-out figures of a run folder, by stage.

    Raises:
        UnreadableFileError: if the file is missing or damaged.
    """
    fields = read_json(folder / RESULTS)
    results = {}
    for stage in fields.names():
        sources = fields.inner(stage).inner("sources")
        rows = {name: sources.number_by_name(name) for name in sources.names()}
        results[stage] = Results(fields.inner(stage).text("model"), rows)
    return results


def prompt_item(item: RawItem, modalities: Mapping[str, Modality]) -> PromptItem:
    """An item of a document, named and shown.

    Args:
        item: of a document that the model was given.
        modalities: by name.
    """
    name, raw = item[0], item[1]
    if name == "text":
        return PromptItem(name, str(raw))
    text = Path(raw).name if isinstance(raw, str | Path) else type(raw).__name__
    preview = modalities[name].preview(modalities[name].encode(raw)) if name in modalities else None
    if preview is None or preview.picture is None:
        return PromptItem(name, text, caption="" if preview is None else preview.caption)
    from PIL import Image

    picture = Image.fromarray(preview.picture.numpy())
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return PromptItem(name, text, base64.b64encode(file.getvalue()).decode(), preview.caption)


def _others(path: Path, stage: str) -> dict[str, Any]:
    """What the file holds of other stages; nothing where it is missing or damaged."""
    try:
        content = read_json(path).plain
    except UnreadableFileError:
        return {}
    return {name: value for name, value in content.items() if name != stage}


def _sample(fields: Fields) -> Sample:
    return Sample(
        source=fields.text("source"),
        prompt=tuple(
            PromptItem(
                item.text("modality"),
                item.text("text"),
                _checked_png(item.text("picture")),
                item.text("caption"),
            )
            for item in fields.objects("prompt")
        ),
        answer=fields.text("answer"),
        expected=fields.text("expected"),
        trouble=fields.text("trouble"),
    )


def _checked_png(text: str) -> str:
    """The text where it is a small PNG in base64, else ""."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return text if data.startswith(_PNG) and len(data) <= _MAX_PICTURE else ""
