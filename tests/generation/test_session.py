"""The cached session against one forward pass over the packed row."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_documents import documents, packed, picture, sound, texts, uncached_logits
from small_model import make_module

from onn_lightning import OmniModule
from onn_lightning.document import encode_document
from onn_lightning.generation.session import Session, one_row_batch
from onn_lightning.modality import Modality

MIXED = [("image", picture(9, 7, 1)), ("text", "人工b"), ("audio", sound(2000, 2)), ("text", "a🙂")]


def read_in_parts(module: OmniModule, segments: list, cuts: list[int]) -> list[torch.Tensor]:
    """Logits after each part, the document cut between segments."""
    session, head = Session(module), module.heads["text"]
    bounds = sorted({min(cut, len(segments)) for cut in cuts} | {0, len(segments)})
    parts = [segments[start:end] for start, end in pairwise(bounds)]
    with torch.no_grad():
        return [head.logits(session.read(part)) for part in parts]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=documents, tail=texts, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_logits_with_the_cache_equal_those_without_however_the_document_is_read(module, document, tail, cuts):
    segments = encode_document([*document, ("text", tail)], module.modalities, closed=False)
    *before, last = segments
    one_by_one = [last[place : place + 1] for place in range(len(last))]  # as generation appends them
    cuts = [*cuts, *range(len(before), len(before) + len(last))]
    reached = read_in_parts(module, [*before, *one_by_one], cuts)[-len(last) :]
    expected = uncached_logits(module, segments)[-len(last) :]
    torch.testing.assert_close(torch.stack(reached), expected, rtol=1e-9, atol=1e-9)


def test_logits_with_the_cache_equal_those_without_in_float32(modalities):
    module = make_module(modalities).eval()
    segments = encode_document(MIXED, module.modalities, closed=False)
    expected = uncached_logits(module, segments)
    ends = torch.tensor([len(segment) for segment in segments]).cumsum(0) - 1
    reached = read_in_parts(module, segments, list(range(len(segments))))
    torch.testing.assert_close(torch.stack(reached), expected[ends], rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(document=documents)
def test_the_row_of_a_session_is_the_row_that_training_packs(modalities, document):
    by_name: dict[str, Modality] = {modality.name: modality for modality in modalities}
    segments = encode_document([*document, ("text", "a")], by_name, closed=False)
    row, expected = one_row_batch(segments, list(by_name)), packed(segments, by_name)
    for part in ("modality_ids", "positions", "document_ids"):
        torch.testing.assert_close(getattr(row, part), getattr(expected, part))
    assert row.modalities.keys() == expected.modalities.keys()
    for name, tokens in row.modalities.items():
        for part in ("features", "indices", "positions_2d"):
            torch.testing.assert_close(getattr(tokens, part), getattr(expected.modalities[name], part))
        assert tokens.targets is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_and_sound_enter_a_model_of_any_floating_type(modalities, dtype):
    module = make_module(modalities).to(dtype)
    hidden = Session(module).read(encode_document(MIXED, module.modalities, closed=False))
    assert hidden.dtype == dtype
    assert hidden.isfinite().all()


def test_every_submodule_keeps_its_mode_and_nothing_remembers_gradients(modalities):
    module = make_module(modalities).train()
    module.trunk.blocks[0].eval()
    before = {name: part.training for name, part in module.named_modules()}
    seen: list[bool] = []
    hook = module.trunk.register_forward_pre_hook(lambda trunk, _: seen.append(trunk.training))
    hidden = Session(module).read(encode_document([("text", "ab")], module.modalities, closed=False))
    hook.remove()
    assert seen == [False]
    assert {name: part.training for name, part in module.named_modules()} == before
    assert not hidden.requires_grad
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
