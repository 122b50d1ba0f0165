"""Order and shares of the training mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.mixture import Mixture
from datamodules.order import shuffled
from datamodules.packing import Piece
from datamodules.places import Buffered, ReaderPlace, fresh_places
from datamodules.sources import Source
from onn_lightning.batch import Segment
from onn_lightning.document import Document


class Numbers(Source):
    """Document i is the number i, some tokens long."""

    def __init__(self, count: int, length: int = 1, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.count = count
        self.length = length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Document:
        return [("text", index)]

    def describe(self, index: int) -> str:
        return f"number {index}"

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter(range(self.count))


def read(name: str, source: Source, index: int) -> list[Piece]:
    assert isinstance(source, Numbers)
    return [Piece((Segment("text", torch.full((source.length,), index)),))]


def take(mixture: Mixture, count: int) -> list[tuple[str, int]]:
    names = list(mixture.places())
    pieces = [taken for _ in range(count) if (taken := mixture.next_piece()) is not None]
    assert len(pieces) == count
    return [(names[ref.source], int(piece.segments[0].features[0])) for ref, piece in pieces]


def mixture_of(sources: Mapping[str, Source], seed: int = 0, reader: int = 0, readers: int = 1) -> Mixture:
    weights = {name: source.weight for name, source in sources.items()}
    return Mixture(sources, seed, fresh_places(weights, readers)[reader], read)


def order_of(length: int, key: int) -> list[int]:
    return shuffled(np.arange(length), length, key).tolist()


@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_the_shuffle_is_a_permutation_at_any_length(length: int, key: int) -> None:
    assert sorted(order_of(length, key)) == list(range(length))


def test_the_shuffle_spreads_and_depends_on_its_key() -> None:
    orders = [order_of(2000, key) for key in (1, 2)]
    for order in orders:
        correlation = torch.corrcoef(torch.tensor([order, list(range(2000))]).double())[0, 1]
        assert abs(correlation) < 0.1  # standard error 0.022
        neighbours = sum(abs(a - b) == 1 for a, b in pairwise(order))
        assert neighbours < 12  # 2 are expected
    assert sum(a == b for a, b in zip(*orders, strict=True)) < 12  # 1 is expected


def test_a_shuffle_of_a_billion_is_reached_anywhere_at_once() -> None:
    assert len(set(shuffled(np.arange(10**9 - 500, 10**9), 10**9, 7).tolist())) == 500


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_every_document_is_read_once_an_epoch_by_exactly_one_reader(
    documents: int, readers: int, seed: int
) -> None:
    streams = [mixture_of({"a": Numbers(documents)}, seed, reader, readers) for reader in range(readers)]
    order = [take(streams[place % readers], 1)[0][1] for place in range(documents * readers)]
    for epoch in range(readers):
        assert sorted(order[epoch * documents : (epoch + 1) * documents]) == list(range(documents))


def test_epochs_and_sources_are_shuffled_differently_and_the_seed_decides() -> None:
    def orders(seed: int) -> list[list[int]]:
        taken = take(mixture_of({"a": Numbers(50), "b": Numbers(50)}, seed), 200)
        a, b = ([number for name, number in taken if name == source] for source in "ab")
        return [a[:50], a[50:100], b[:50]]

    assert len({tuple(order) for order in orders(0) + orders(1)}) == 6
    assert orders(0) == orders(0)


def test_shares_are_counted_in_tokens() -> None:
    sources = {"long": Numbers(9, 90, weight=3.0), "short": Numbers(9, 7), "mid": Numbers(9, 30, weight=2.0)}
    tokens: Counter[str] = Counter()
    mixture = mixture_of(sources)
    for name, _ in take(mixture, 3000):
        source = sources[name]
        tokens[name] += source.length
    total = sum(tokens.values())
    for name, source in sources.items():
        assert abs(tokens[name] - total * source.weight / 6) <= 2 * 90


def test_a_mixture_goes_on_exactly_where_its_state_was_taken() -> None:
    sources = {"a": Numbers(7, 3), "b": Numbers(5, 4, weight=2.0)}
    first = mixture_of(sources, 3, 0, 2)
    take(first, 23)
    second = Mixture(sources, 3, ReaderPlace(first.places(), first.weights), read)
    assert take(second, 50) == take(first, 50)


def test_a_document_that_changed_since_the_checkpoint_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot resume: number \d+ no longer gives"):
        mixture_of({"a": Numbers(7)}).pieces_at(Buffered([0], [0], [5]))
