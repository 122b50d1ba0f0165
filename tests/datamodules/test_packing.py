"""Packing, proved on documents whose every token has a number of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.packing import Collator, Piece, prototype_of, split_document
from datamodules.waiting import WaitingPieces
from onn_lightning.batch import Batch, Segment
from onn_lightning.modality import BadSampleError

DOCUMENT = 1 << 20  # token number = document * DOCUMENT + place in the document


def text(first: int, length: int, mask: list[bool] | None = None) -> Segment:
    numbers = torch.arange(first, first + length)
    return Segment("text", numbers, targets=numbers, loss_mask=None if mask is None else torch.tensor(mask))


def image(first: int, length: int) -> Segment:
    numbers = torch.arange(first, first + length)
    pixels = numbers[:, None].double().expand(-1, 3)
    return Segment("image", pixels, torch.stack([numbers, numbers], 1), targets=pixels)


def collator(row_length: int, rows: int) -> Collator:
    prototypes = {"text": prototype_of(text(0, 1)), "image": prototype_of(image(0, 1))}
    return Collator(prototypes, ["text", "image"], row_length, rows)


@st.composite
def documents(draw: st.DrawFn) -> tuple[int, list[list[Segment]]]:
    """A row length and documents of text (some of it masked) and images that fit a row."""
    row_length = draw(st.integers(2, 24))
    result = []
    for number in range(draw(st.integers(1, 6))):
        segments: list[Segment] = []
        place = number * DOCUMENT
        for is_image in draw(st.lists(st.booleans(), min_size=1, max_size=5)):
            length = draw(st.integers(1, row_length - 1 if is_image else 60))
            masked = not is_image and draw(st.booleans())
            mask = draw(st.lists(st.booleans(), min_size=length, max_size=length)) if masked else None
            segments.append(image(place, length) if is_image else text(place, length, mask))
            place += length
        result.append(segments)
    return row_length, result


def numbers_of(batch: Batch) -> torch.Tensor:
    """[B * T] the token number at each place, -1 where there is padding."""
    flat = torch.full((batch.modality_ids.numel(),), -1)
    flat[batch.modalities["text"].indices] = batch.modalities["text"].features
    flat[batch.modalities["image"].indices] = batch.modalities["image"].features[:, 0].long()
    return flat


def supervised_numbers(segments: list[Segment]) -> list[int]:
    """What must be predicted: every token with a loss, but for the document's first."""
    numbers: list[int] = []
    for segment in segments:
        assert segment.targets is not None
        own = segment.targets if segment.modality == "text" else segment.targets[:, 0].long()
        numbers += own.tolist() if segment.loss_mask is None else own[segment.loss_mask].tolist()
    return [number for number in numbers if number % DOCUMENT]


@given(documents())
@settings(max_examples=80, deadline=None)
def test_every_supervised_token_appears_exactly_once_and_is_predicted_by_its_predecessor(
    case: tuple[int, list[list[Segment]]],
) -> None:
    row_length, docs = case
    pieces = [piece for document in docs for piece in split_document(document, row_length)]
    batch = collator(row_length, len(pieces))([[piece] for piece in pieces])
    numbers = numbers_of(batch)
    seen: list[int] = []
    for tokens in batch.modalities.values():
        assert tokens.targets is not None and tokens.source_indices is not None
        targets = tokens.targets if tokens.targets.ndim == 1 else tokens.targets[:, 0].long()
        assert torch.equal(numbers[tokens.source_indices], targets - 1)
        assert torch.equal(numbers[tokens.source_indices + 1], targets)
        seen += targets.tolist()
    assert sorted(seen) == sorted(number for document in docs for number in supervised_numbers(document))


@given(documents())
@settings(max_examples=60, deadline=None)
def test_pieces_fit_the_row_overlap_by_one_token_and_never_cut_a_medium(
    case: tuple[int, list[list[Segment]]],
) -> None:
    row_length, docs = case
    for document in docs:
        pieces = split_document(document, row_length)
        assert all(0 < len(piece) <= row_length for piece in pieces)
        assert sum(map(len, pieces)) == sum(map(len, document)) + len(pieces) - 1
        for before, after in pairwise(pieces):
            assert torch.equal(before.segments[-1].features[-1:], after.segments[0].features)
            assert after.segments[0].targets is None
        kept = [part for piece in pieces for part in piece.segments if part.targets is not None]
        whole = [part.features for part in kept if part.modality == "image"]
        media = [segment.features for segment in document if segment.modality == "image"]
        assert len(whole) == len(media) and all(map(torch.equal, whole, media))


@given(documents())
@settings(max_examples=60, deadline=None)
def test_rows_hold_every_token_once_and_documents_never_mix(case: tuple[int, list[list[Segment]]]) -> None:
    row_length, docs = case
    waiting = WaitingPieces()
    for document in docs:
        for piece in split_document(document, row_length):
            waiting.append(piece)
    total = waiting.tokens
    rows: list[list[Piece]] = []
    while len(waiting):
        row, room = [], row_length
        while (index := waiting.best_fit(room)) is not None:
            row.append(waiting.pop(index))
            room -= len(row[-1])
        rows.append(row)
    batch = collator(row_length, len(rows) + 1)(rows)
    numbers = numbers_of(batch)
    document_ids, positions = batch.document_ids.flatten(), batch.positions.flatten()
    padding = numbers < 0
    assert batch.num_tokens == total == int((~padding).sum())
    assert torch.equal(document_ids < 0, padding)
    assert torch.equal(batch.modality_ids.flatten() < 0, padding)
    assert not padding.view(len(rows) + 1, -1)[:-1, 0].any() and padding.view(len(rows) + 1, -1)[-1].all()
    for row in range(len(rows)):
        place = slice(row * row_length, (row + 1) * row_length)
        for document in document_ids[place].unique().tolist():
            if document >= 0:
                inside = document_ids[place] == document
                assert numbers[place][inside].diff().eq(1).all()  # one run of one document
                assert torch.equal(positions[place][inside], torch.arange(int(inside.sum())))
    for number, name in enumerate(["image", "text"]):  # modality ids follow the sorted names
        assert (batch.modality_ids.flatten()[batch.modalities[name].indices] == number).all()


def test_a_caption_s_first_letter_is_predicted_by_the_image_s_last_patch() -> None:
    batch = collator(8, 1)([[Piece((image(0, 3), text(3, 2)))]])
    tokens = batch.modalities["text"]
    assert tokens.indices.tolist() == [3, 4]
    assert tokens.source_indices is not None and tokens.source_indices.tolist() == [2, 3]


def test_context_segments_are_read_but_never_predicted() -> None:
    batch = collator(8, 1)([[Piece((text(0, 3).without_loss(), text(3, 2)))]])
    tokens = batch.modalities["text"]
    assert tokens.features.tolist() == [0, 1, 2, 3, 4]
    assert tokens.targets is not None and tokens.targets.tolist() == [3, 4]


def test_a_batch_without_any_tokens_has_the_shapes_and_types_of_a_full_one() -> None:
    make = collator(8, 2)
    full, empty = make([[Piece((image(0, 3), text(3, 2)))]]), make([])
    assert empty.num_tokens == 0 and (empty.document_ids == -1).all()
    for name, tokens in full.modalities.items():
        for part in ("features", "indices", "positions_2d", "targets", "source_indices"):
            here, there = getattr(empty.modalities[name], part), getattr(tokens, part)
            assert (here is None) == (there is None)
            if here is not None:
                assert (here.dtype, here.shape[1:], len(here)) == (there.dtype, there.shape[1:], 0)


def test_a_modality_without_targets_has_none_in_the_batch() -> None:
    read_only = Segment("image", torch.zeros(3, 4))
    make = Collator({"image": prototype_of(read_only)}, ["image"], 8, 1)
    tokens = make([[Piece((read_only,))]]).modalities["image"]
    assert tokens.targets is None and tokens.source_indices is None and tokens.positions_2d is None


def test_a_prototype_does_not_carry_its_sample_along() -> None:
    prototype = prototype_of(image(0, 1000))
    assert prototype.features.untyped_storage().nbytes() == 0


def test_a_medium_longer_than_a_row_is_refused_and_the_remedies_are_named() -> None:
    with pytest.raises(BadSampleError, match=r"'image' has 8 tokens, .* room for 7 .*budget.*`row_length`"):
        split_document([text(0, 1), image(1, 8)], 8)


def test_a_modality_that_setup_never_saw_is_refused_by_name() -> None:
    make = Collator({"text": prototype_of(text(0, 1))}, ["text", "image"], 8, 1)
    with pytest.raises(ValueError, match=r"modality 'image', of which no source showed a sample"):
        make([[Piece((image(0, 2),))]])


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 4 tokens"):
        collator(4, 1)([[Piece((text(0, 5),))]])
    with pytest.raises(ValueError, match="2 rows do not fit in a batch of 1"):
        collator(4, 1)([[], []])


def waiting_for(lengths: Sequence[int]) -> WaitingPieces:
    waiting = WaitingPieces()
    for length in lengths:
        waiting.append(Piece((text(0, length),), pixels=10 * length))
    return waiting


def test_best_fit_takes_the_longest_that_fits() -> None:
    pieces = waiting_for([3, 9, 5, 5])
    assert pieces.best_fit(6) == 2
    assert pieces.best_fit(2) is None
    assert pieces.best_fit(9, pixel_room=49) == 0
    assert WaitingPieces().best_fit(4) is None


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200), st.data())
def test_waiting_pieces_are_a_list_with_a_quick_best_fit(lengths: list[int], data: st.DataObject) -> None:
    waiting = waiting_for(lengths)
    expected = list(lengths)
    while expected:
        room = data.draw(st.integers(0, 30))
        fitting = [length for length in expected if length <= room]
        assert waiting.best_fit(room) == (expected.index(max(fitting)) if fitting else None)
        index = data.draw(st.integers(0, len(expected) - 1))
        if data.draw(st.booleans()):
            assert len(waiting.pop(index)) == expected.pop(index)
        else:
            assert len(waiting.swap_pop(index)) == expected[index]
            expected[index] = expected[-1]
            expected.pop()
        assert [len(waiting[place]) for place in range(len(waiting))] == expected
        assert waiting.tokens == sum(expected)
