"""Decisions packed eight to a byte come back as they were."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onn_lightning.nn.packed_bits import pack_bits, unpack_bits


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 40), neurons=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_any_decisions_come_back_out_of_an_eighth_of_their_bytes(
    tokens: int, neurons: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    decisions = torch.randint(2, (tokens, neurons), dtype=torch.uint8, generator=generator)
    packed = pack_bits(decisions)
    assert packed.shape == (-(-tokens // 8), neurons) and packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, tokens), decisions)
