"""Sampling against the logits processors of transformers, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from onn_lightning.generation.sampling import Sampling, choose, warp


def everything(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bool)


def reference(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers(torch.zeros(1, 0, dtype=torch.int64), logits[None])[0]


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.05, 5.0),
    top_k=st.none() | st.integers(1, 400),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_the_warped_distribution_is_that_of_transformers(size, seed, temperature, top_k, top_p):
    logits = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(temperature, top_k, top_p)
    expected = reference(logits, sampling).softmax(dim=-1)
    torch.testing.assert_close(warp(logits, sampling).softmax(dim=-1), expected, rtol=1e-4, atol=1e-7)


def test_equal_logits_at_the_edge_of_top_k_are_all_kept_as_in_transformers():
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0])
    sampling = Sampling(1.0, top_k=2)
    kept = warp(logits, sampling) > -torch.inf
    assert kept.tolist() == [True, True, True, False]
    assert torch.equal(kept, reference(logits, sampling) > -torch.inf)


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    draws = [choose(probabilities.log(), everything(3), Sampling(1.0), generator) for _ in range(4000)]
    counts = torch.bincount(torch.tensor(draws), minlength=3) / len(draws)
    torch.testing.assert_close(counts, probabilities, rtol=0, atol=0.03)  # about four standard errors


def test_temperature_zero_takes_the_most_probable_and_draws_nothing():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    greedy = Sampling(0.0, top_k=3, top_p=0.9)
    assert choose(torch.tensor([0.1, 2.0, 1.9]), everything(3), greedy, generator) == 1
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-10, 1.0, 1e30])
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_forbidden_id_is_never_chosen_at_any_temperature(temperature, seed):
    logits = torch.tensor([100.0, 1.0, 0.0, 90.0])
    allowed = torch.tensor([False, True, True, False])
    assert choose(logits, allowed, Sampling(temperature), torch.Generator().manual_seed(seed)) in (1, 2)


def test_a_vanishing_temperature_is_greedy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 0.5])
    assert {choose(logits, everything(3), Sampling(1e-40), generator) for _ in range(50)} == {1}


def test_one_seed_gives_one_draw_whatever_the_type_of_the_logits():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(1)).bfloat16()
    draws = {
        choose(logits.to(dtype), everything(100), Sampling(1.0), torch.Generator().manual_seed(5))
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
    }
    assert len(draws) == 1


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_with_a_remedy(damage):
    with pytest.raises(RuntimeError, match=r"not finite.*earlier checkpoint"):
        choose(torch.tensor([0.0, damage]), everything(2), Sampling(1.0), torch.Generator())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)
