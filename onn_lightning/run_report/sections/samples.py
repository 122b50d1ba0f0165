"""Samples: what the model answered, beside what it was asked and what the document says."""

from __future__ import annotations

from collections.abc import Iterator

from onn_lightning.run_report.markup import Safe, clipped, element, join, paragraph
from onn_lightning.run_report.run import Run
from onn_lightning.run_report.samples import Answers, PromptItem, Sample
from onn_lightning.run_report.section import Section
from onn_lightning.run_report.sections.results import NAMES

MAX_SAMPLES, MAX_ITEMS, MAX_TEXT = 60, 12, 600


def section(run: Run) -> Section:
    """The answers of a run, by stage."""
    parts = [
        part
        for stage, answers in sorted(run.answers.items(), reverse=True)
        for part in _stage(stage, answers)
    ]
    if not parts:
        parts = [paragraph("No answers were written yet: they are made when a run ends.", class_="faint")]
    return Section("samples", "Samples", join(parts))


def _stage(stage: str, answers: Answers) -> Iterator[Safe]:
    model = f" ({answers.model})" if answers.model else ""
    yield element("h3", f"{NAMES.get(stage, stage)}{model}")
    yield element("ul", [_sample(sample) for sample in answers.samples[:MAX_SAMPLES]], class_="samples")
    if len(answers.samples) > MAX_SAMPLES:
        yield paragraph(f"{len(answers.samples) - MAX_SAMPLES:,} more are left out.", class_="faint")


def _sample(sample: Sample) -> Safe:
    if sample.trouble:
        body: Safe = paragraph("skipped: ", clipped(sample.trouble, MAX_TEXT), class_="faint")
    else:
        expected = None
        if sample.expected:
            right = sample.answer.strip() == sample.expected.strip()
            verdict = element(
                "span", "✓ as expected" if right else "✗ expected", class_="right" if right else "wrong"
            )
            expected = element("div", verdict, None if right else _quoted(sample.expected), class_="expected")
        body = join(
            element("div", [_item(item) for item in sample.prompt[:MAX_ITEMS]], class_="prompt"),
            element(
                "div", element("span", "→", aria_label="answer"), _quoted(sample.answer), class_="answer"
            ),
            expected,
        )
    return element("li", element("span", clipped(sample.source, 80), class_="source"), element("div", body))


def _item(item: PromptItem) -> Safe:
    if item.modality == "text":
        return _quoted(item.text)
    named = clipped(item.text, 120)
    about = f"{item.modality}: {named}{f' ({clipped(item.caption, 120)})' if item.caption else ''}"
    picture = None
    if item.picture:
        picture = element("img", src=f"data:image/png;base64,{item.picture}", alt=about)
    return element("figure", picture, element("figcaption", about), class_="medium")


def _quoted(data: str) -> Safe:
    return element("q", clipped(data, MAX_TEXT))
