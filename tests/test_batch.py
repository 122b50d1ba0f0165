"""The contract between data and model: segments, batches, and documents on their way between them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import CLOSING, OPENING, ByteText, Patches, pack

from onn_lightning.batch import Batch, Segment
from onn_lightning.document import encode_document
from onn_lightning.modality import BadSampleError

MODALITIES = {"text": ByteText(), "patch": Patches()}


@pytest.mark.parametrize("part", ["positions_2d", "targets", "loss_mask"])
def test_a_segment_with_parts_of_different_length_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match=f"modality 'text': {part} has 2 rows, features have 3"):
        Segment("text", torch.zeros(3, 1), **{part: torch.zeros(2)})


@given(length=st.integers(0, 6), start=st.integers(0, 6), stop=st.integers(0, 6))
def test_a_slice_of_a_segment_slices_every_part(length: int, start: int, stop: int) -> None:
    rows = torch.arange(length)
    segment = Segment("m", rows[:, None], torch.stack((rows, rows), 1), rows * 2, rows > 1)[start:stop]
    kept = rows[start:stop]
    assert len(segment) == len(kept)
    assert torch.equal(segment.features[:, 0], kept)
    assert torch.equal(segment.positions_2d[:, 1], kept)
    assert torch.equal(segment.targets, kept * 2)
    assert torch.equal(segment.loss_mask, kept > 1)


def test_a_slice_of_a_segment_without_parts_has_none_either() -> None:
    part = Segment("m", torch.zeros(3, 1))[:2]
    assert len(part) == 2 and part.targets is part.positions_2d is part.loss_mask is None


def test_a_segment_as_context_keeps_its_tokens_and_loses_its_targets() -> None:
    segment = MODALITIES["text"].encode("ab")
    context = segment.without_loss()
    assert context.targets is None and context.loss_mask is None
    assert context.features is segment.features and segment.targets is not None


def example_batch() -> Batch:
    documents = [[("patch", [1.0, 2.0, 3.0]), ("text", "a")]]
    return pack([documents], list(MODALITIES.values()), length=6, source="here")


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    parts = [
        part for tokens in batch.modalities.values() for part in vars(tokens).values() if part is not None
    ]
    return [batch.modality_ids, batch.positions, batch.document_ids, *parts]


def test_moving_a_batch_moves_every_tensor_and_nothing_else() -> None:
    batch = example_batch()
    moved = batch.to("meta", non_blocking=True)
    assert len(tensors_of(moved)) == len(tensors_of(batch)) == 12
    for before, after in zip(tensors_of(batch), tensors_of(moved), strict=True):
        assert after.device.type == "meta" and after.shape == before.shape and after.dtype == before.dtype
    assert moved.source == "here" and list(moved.modalities) == list(batch.modalities)
    assert batch.positions.device.type == "cpu"


def test_absent_parts_stay_absent_on_the_way_to_a_device() -> None:
    assert example_batch().to("meta").modalities["text"].positions_2d is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs an accelerator")
def test_pinning_a_batch_pins_every_tensor() -> None:
    assert all(tensor.is_pinned() for tensor in tensors_of(example_batch().pin_memory()))


def test_tokens_are_counted_without_padding() -> None:
    assert example_batch().num_tokens == 3  # a patch, a byte and the closing symbol


def test_a_document_is_opened_by_its_first_modality_and_closed_by_its_last() -> None:
    whole = encode_document([("text", "a"), ("text", "b")], MODALITIES)
    assert [segment.features.flatten().tolist() for segment in whole] == [[OPENING], [97], [98], [CLOSING]]
    assert whole[0].targets is None and whole[-1].targets is not None
    mixed = encode_document([("patch", [0.0, 0.0, 0.0]), ("text", "b")], MODALITIES)
    assert [segment.modality for segment in mixed] == ["patch", "text", "text"]


def test_an_open_document_has_no_closing_tokens() -> None:
    segments = encode_document([("text", "a")], MODALITIES, closed=False)
    assert [segment.features.flatten().tolist() for segment in segments] == [[OPENING], [97]]


def test_an_unsupervised_item_carries_no_loss_and_a_document_that_ends_in_one_stays_open() -> None:
    segments = encode_document([("text", "a", True), ("text", "b", False)], MODALITIES)
    assert [segment.targets is None for segment in segments] == [True, False, True]


def test_empty_items_leave_no_segment() -> None:
    assert encode_document([], MODALITIES) == []
    segments = encode_document([("patch", []), ("text", "")], MODALITIES)
    assert [segment.features.flatten().tolist() for segment in segments] == [[CLOSING]]


def test_an_item_of_an_unknown_modality_is_named_with_those_of_the_run() -> None:
    with pytest.raises(BadSampleError, match=r"modality 'smell', the run has \['patch', 'text'\]"):
        encode_document([("smell", b"")], MODALITIES)
