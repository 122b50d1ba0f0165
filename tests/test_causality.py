"""Causality at the level of text: what is written later moves no earlier logit.

Through everything that text passes on its way: tokenizer (causal word ids), document, packing beside
another document, embedder, trunk, head - in float64, where a leak of any size is visible.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules import TextModality
from datamodules.packing import Collator, Piece, prototype_of
from onn_lightning import OmniModule
from onn_lightning.document import encode_document
from onn_lightning.nn import TrunkConfig

NEIGHBOUR = "人工智能 and another document"
alphabets = (
    "人工智能的时代中国人民",
    "the other than there in 'tis 42",
    "人工智能AI的other卡拉OK 2024",
    "🙂👩‍🚀🇨🇳é\u0301",
    "\U0002ffff\ue000\x00\x85𐀀",  # outside the inventory: spelled in bytes
)
mixed = st.one_of(*(st.text(st.sampled_from(alphabet), max_size=10) for alphabet in alphabets)) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=6
)


@pytest.fixture(
    scope="module",
    params=[{}, {"hashed_words": 500}, {"ngram_buckets": 500}],
    ids=["words", "hashed", "ngrams"],
)
def module(request: pytest.FixtureRequest) -> OmniModule:
    torch.manual_seed(0)
    text = TextModality(max_words=30_000, embedding_size=16, **request.param)
    return OmniModule(TrunkConfig(32, 2, 2), [text]).double().eval()


@torch.no_grad()
def logits_of(module: OmniModule, text: str) -> Tensor:
    """[tokens, V] logits of the text's document, packed in one row with a neighbour on either side."""
    modalities = module.modalities
    neighbour = tuple(encode_document([("text", NEIGHBOUR)], modalities))
    document = tuple(encode_document([("text", text)], modalities, closed=False))
    pieces = [Piece(neighbour), Piece(document), Piece(neighbour)]
    length = sum(piece.length for piece in pieces)
    collate = Collator({"text": prototype_of(neighbour[-1])}, ["text"], length, 1)
    hidden = module(collate([pieces])).hidden[0, pieces[0].length : pieces[0].length + pieces[1].length]
    head = module.heads["text"]
    return head.logits(hidden)  # type: ignore[operator]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(past=mixed, future=mixed, other_future=mixed)
def test_what_is_written_later_moves_no_earlier_logit(
    module: OmniModule, past: str, future: str, other_future: str
) -> None:
    text = module.modalities["text"]
    shared = len(text.encode(past)) + 1  # tokens, with <bos>
    first = logits_of(module, past + future)[:shared]
    second = logits_of(module, past + other_future)[:shared]
    assert torch.allclose(first, second, rtol=0, atol=1e-12)


def test_the_last_character_does_move_its_own_logit(module: OmniModule) -> None:
    """The comparison above would see a difference if there were one."""
    first, second = logits_of(module, "人工智能"), logits_of(module, "人工智商")
    assert torch.allclose(first[:-1], second[:-1], rtol=0, atol=1e-12)
    assert not torch.allclose(first[-1], second[-1], rtol=0, atol=1e-6)


def test_full_context_word_ids_would_leak(module: OmniModule) -> None:
    """The trap that the causal ids avoid: the id of an unfinished word tells what follows."""
    tokenizer = module.modalities["text"].tokenizer  # type: ignore[attr-defined]
    alone, begun = (tokenizer.encode(text, full_context=True).word_ids[0] for text in ("人", "人工智能"))
    assert alone != begun
    alone, begun = (tokenizer.encode(text).word_ids[0] for text in ("人", "人工智能"))
    assert alone == begun
