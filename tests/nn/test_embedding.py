"""The entrance: tokens land in their places, padding stays zero, modalities without tokens take part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onn_lightning.batch import Batch, ModalityTokens
from onn_lightning.nn import PatchEmbedder, TextEmbedder, scatter_embeddings
from onn_lightning.nn.rope import rotate_2d


def make_batch(**modalities: ModalityTokens) -> Batch:
    return Batch(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4), modalities)


def test_tokens_land_at_their_indices_and_padding_is_zero() -> None:
    text, patches = nn.Embedding(5, 8), PatchEmbedder(3, 8)
    features, places = torch.randn(2, 3), torch.tensor([[0, 1], [2, 3]])
    batch = make_batch(
        text=ModalityTokens(torch.tensor([1, 4]), torch.tensor([7, 0])),
        image=ModalityTokens(features, torch.tensor([2, 3]), places),
    )
    rows = scatter_embeddings(batch, {"text": text, "image": patches}, 8).flatten(0, 1)
    assert torch.equal(rows[7], text.weight[1]) and torch.equal(rows[0], text.weight[4])
    assert torch.equal(rows[2:4], rotate_2d(patches.projection(features), places))
    assert (rows[[1, 4, 5, 6]] == 0).all()


def test_gradients_reach_each_embedder_and_are_zero_for_one_without_tokens() -> None:
    embedders = {"text": nn.Embedding(5, 8), "image": PatchEmbedder(3, 8)}
    batch = make_batch(
        text=ModalityTokens(torch.tensor([1, 4]), torch.tensor([7, 0])),
        image=ModalityTokens(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2)),
    )
    scatter_embeddings(batch, embedders, 8).square().sum().backward()
    assert embedders["text"].weight.grad.abs().sum() > 0
    assert all((parameter.grad == 0).all() for parameter in embedders["image"].parameters())


def test_a_modality_the_model_was_not_built_for_is_named() -> None:
    batch = make_batch(smell=ModalityTokens(torch.zeros(0), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(KeyError, match=r"'smell', the model was built for \['text'\]"):
        scatter_embeddings(batch, {"text": nn.Embedding(1, 8)}, 8)


@pytest.mark.parametrize("use_words", [True, False])
@pytest.mark.parametrize("use_previous_words", [True, False])
@pytest.mark.parametrize("embedding_size", [None, 6])
def test_text_is_the_sum_of_the_tables_in_use(
    use_words: bool, use_previous_words: bool, embedding_size: int | None
) -> None:
    embedder = TextEmbedder(7, 5, 9, 8, embedding_size, use_words, use_previous_words)
    features = torch.tensor([[6, 4, 8], [0, 0, 0]])
    expected = embedder.character.weight[features[:, 0]]
    assert (embedder.word is not None) == use_words
    if embedder.word is not None:
        expected = expected + embedder.word.weight[features[:, 1]]
    if embedder.previous_word is not None:
        expected = expected + embedder.previous_word.weight[features[:, 2]]
    if embedding_size is not None:
        expected = expected @ embedder.projection.weight.T
    torch.testing.assert_close(embedder(features), expected)
    assert embedder(features).shape == (2, 8)


def test_tables_of_the_last_two_and_three_characters_are_added() -> None:
    embedder = TextEmbedder(7, 5, 9, 8, ngram_buckets=3)
    features = torch.tensor([[6, 4, 8, 2, 0], [0, 0, 0, 1, 2]])
    tables = (embedder.character, embedder.word, embedder.previous_word, embedder.bigram, embedder.trigram)
    expected = sum(table.weight[features[:, column]] for column, table in enumerate(tables))
    torch.testing.assert_close(embedder(features), expected)
