"""Held-out figures against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import ByteText, Patches, pack

from onn_lightning.batch import Batch
from onn_lightning.held_out import HeldOutMetrics
from onn_lightning.modality import HeadOutput

MODALITIES = [ByteText(), Patches()]
PATCH = [0.0, 0.0, 0.0]


def captions(rows: list[list[str]]) -> Batch:
    """One patch before every caption; a caption's supervised symbols are its bytes and the closing one."""
    documents = [[[("patch", PATCH), ("text", text)] for text in row] for row in rows]
    return pack(documents, MODALITIES, length=64)


def computed(metrics: dict) -> dict[str, float]:
    return {name: float(metric.compute()) for name, metric in metrics.items()}


rows_of_captions = st.lists(st.lists(st.text("abcé", max_size=4), max_size=3), min_size=1, max_size=3)


@given(batches=st.lists(rows_of_captions, min_size=1, max_size=3), data=st.data())
def test_exact_match_and_bits_per_byte_equal_a_count_by_hand(batches: list[list[list[str]]], data) -> None:
    metrics = HeldOutMetrics(["text", "patch"])
    answers: list[bool] = []
    nats, num_bytes, hits = [], 0, []
    latest: dict[str, float] = {}
    for rows in batches:
        right: list[bool] = []
        for text in (text for row in rows for text in row):
            symbols = len(text.encode()) + 1
            own = data.draw(st.lists(st.booleans(), min_size=symbols, max_size=symbols))
            right += own
            answers.append(all(own))
            num_bytes += symbols - 1
        batch = captions(rows)
        targets = batch.modalities["text"].targets
        assert targets is not None and len(targets) == len(right)
        loss = torch.rand(len(right))
        nats += loss.tolist()
        hits += right
        output = HeadOutput(loss, None, torch.tensor(right, dtype=torch.bool), (targets < 256).long())
        latest |= computed(metrics.update(batch, {"text": output}))
    if not answers:
        assert latest == {}
        return
    assert latest["exact_match"] == pytest.approx(sum(answers) / len(answers))
    assert latest["accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert latest["text_loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert latest["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / max(1, num_bytes), rel=1e-5)


def test_documents_of_the_same_number_in_different_rows_are_different_answers() -> None:
    batch = captions([["a"], ["a"]])
    output = HeadOutput(torch.zeros(4), correct=torch.tensor([True, True, True, False]))
    metrics = HeldOutMetrics(["text"]).update(batch, {"text": output})
    assert computed(metrics)["exact_match"] == 0.5


def test_text_alone_has_no_exact_match() -> None:
    batch = pack([[[("text", "ab")]]], MODALITIES)
    output = HeadOutput(torch.ones(3), correct=torch.tensor([True] * 3), num_bytes=torch.tensor([1, 1, 0]))
    metrics = HeldOutMetrics(["text"]).update(batch, {"text": output})
    assert set(metrics) == {"text_loss", "accuracy", "bits_per_byte"}
    assert computed(metrics)["bits_per_byte"] == pytest.approx(3 / 2 / math.log(2))


def test_a_regression_has_a_loss_and_nothing_else() -> None:
    batch = pack([[[("patch", [*PATCH, *PATCH])]]], MODALITIES)
    metrics = HeldOutMetrics(["patch"]).update(batch, {"patch": HeadOutput(torch.tensor([2.0]))})
    assert computed(metrics) == {"patch_loss": 2.0}


def test_a_modality_without_targets_in_the_batch_reports_nothing() -> None:
    batch = pack([[[("text", "ab")]]], MODALITIES)
    assert HeldOutMetrics(["patch"]).update(batch, {"patch": HeadOutput(torch.zeros(0))}) == {}


def test_bits_add_up_in_float64_over_many_batches() -> None:
    metrics = HeldOutMetrics(["text"])
    batch = pack([[[("text", "a")]]], MODALITIES)
    for loss in (1e8, *[0.5] * 64):
        output = HeadOutput(torch.tensor([loss]), num_bytes=torch.tensor([1]))
        updated = metrics.update(batch, {"text": output})
    nats = updated["bits_per_byte"].nats
    assert nats.dtype == torch.float64 and nats == 1e8 + 32
