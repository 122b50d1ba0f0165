"""What a token may see: its own document's past, whatever stands beside it in the row or in the cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onn_lightning.nn import DynSIHA, KVCache, MoIETrunk, SBLForm, TrunkConfig, YarnScaling
from onn_lightning.nn.attention import additive_mask, packed_causal_mask
from onn_lightning.nn.rope import RotaryPositions

CONFIGS = {
    "normalised": TrunkConfig(hidden_size=16, num_layers=2, num_heads=4),
    "reference form": TrunkConfig(
        hidden_size=16, num_layers=2, num_heads=4, sbl=SBLForm(normalized=False, gate=0.0)
    ),
    "grouped keys": TrunkConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8),
    "one head of full width": TrunkConfig(hidden_size=16, num_layers=2, num_heads=1),
    "yarn": TrunkConfig(hidden_size=16, num_layers=2, num_heads=2, yarn=YarnScaling(8.0, 64)),
}


def make_trunk(name: str) -> MoIETrunk:
    torch.manual_seed(0)
    return MoIETrunk(CONFIGS[name]).double().requires_grad_(False)


def embeddings(length: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, length, 16, dtype=torch.float64)


def alone(trunk: MoIETrunk, x: Tensor) -> Tensor:
    """Hidden states of x [1, T, D] as the only document of its row."""
    return trunk(x, torch.arange(x.shape[1])[None]).hidden


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_give_what_they_give_alone(name: str) -> None:
    trunk = make_trunk(name)
    documents = [embeddings(length) for length in (5, 1, 7)]
    padding = embeddings(3)
    x = torch.cat((*documents, padding), dim=1)
    positions = torch.cat([torch.arange(part.shape[1]) for part in (*documents, padding)])[None]
    document_ids = torch.repeat_interleave(torch.tensor([0, 1, 2, -1]), torch.tensor([5, 1, 7, 3]))[None]
    packed = trunk(x, positions, document_ids).hidden
    for document, hidden in zip(documents, packed.split((5, 1, 7, 3), dim=1), strict=False):
        torch.testing.assert_close(hidden, alone(trunk, document), rtol=1e-9, atol=1e-9)
    assert packed.isfinite().all()


def test_the_content_of_padding_and_of_other_rows_does_not_matter() -> None:
    trunk = make_trunk("normalised")
    x = embeddings(8, rows=2)
    positions = torch.arange(8).expand(2, 8)
    document_ids = torch.tensor([[0] * 6 + [-1] * 2, [0] * 8])
    before = trunk(x, positions, document_ids).hidden
    x[0, 6:], x[1] = 100.0, 0.0
    after = trunk(x, positions, document_ids).hidden
    assert torch.equal(before[0, :6], after[0, :6])


@settings(max_examples=15, deadline=None)
@given(changed=st.integers(0, 9), name=st.sampled_from(sorted(CONFIGS)), seed=st.integers(0, 100))
def test_changing_a_token_moves_no_earlier_hidden_state_and_its_own(
    changed: int, name: str, seed: int
) -> None:
    trunk = make_trunk(name)
    torch.manual_seed(seed)
    x = embeddings(10)
    other = x.clone()
    other[:, changed] = torch.randn(16, dtype=torch.float64)
    before, after = alone(trunk, x), alone(trunk, other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed], after[:, changed])


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_the_mask_is_the_past_of_the_same_document(lengths: list[int]) -> None:
    ids = [document for document, length in enumerate(lengths) for _ in range(length)]
    mask = packed_causal_mask(torch.tensor([ids]))[0, 0]
    for query, own in enumerate(ids):
        for key, other in enumerate(ids):
            assert mask[query, key] == (key <= query and own == other)


def test_numbers_added_to_the_scores_give_what_the_mask_of_yes_and_no_gives() -> None:
    attention = DynSIHA(16, 4, 2).double()
    x = embeddings(9, rows=2).requires_grad_()
    rotary = RotaryPositions(4, 100.0)(torch.arange(9).expand(2, 9))
    mask = packed_causal_mask(torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1], [0] * 9]))
    found = []
    for form in (mask, additive_mask(mask, x.dtype)):
        mixed = attention(x, rotary, form)
        found.append((mixed, *torch.autograd.grad(mixed.square().sum(), [x, *attention.parameters()])))
    assert all(torch.equal(plain, added) for plain, added in zip(*found, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_all_layers_keep_one_mask_for_backward(autocast: bool) -> None:
    trunk, length = MoIETrunk(CONFIGS["normalised"]), 24
    kept: set[int] = set()

    def keep(saved: Tensor) -> Tensor:
        if saved.shape[-2:] == (length, length):
            kept.add(saved.untyped_storage().data_ptr())
        return saved

    ids = torch.zeros(1, length, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        output = trunk(torch.randn(1, length, 16), ids, ids)
    assert len(kept) == 1 and output.hidden.isfinite().all()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunks", [[12], [5, 7], [1] * 12, [7, 1, 1, 3]])
def test_a_cache_filled_in_any_chunks_changes_no_hidden_state(name: str, chunks: list[int]) -> None:
    trunk = make_trunk(name)
    x = embeddings(12, rows=2)
    positions = torch.arange(12).expand(2, 12)
    expected = trunk(x, positions).hidden
    cache, hidden, start = KVCache(trunk.config.num_layers), [], 0
    for size in chunks:
        part = slice(start, start + size)
        hidden.append(trunk(x[:, part], positions[:, part], cache=cache).hidden)
        start += size
    assert len(cache) == 12
    torch.testing.assert_close(torch.cat(hidden, dim=1), expected, rtol=1e-9, atol=1e-9)


def test_the_cache_keeps_everything_when_it_grows_past_its_capacity() -> None:
    cache = KVCache(1)
    keys, values = torch.randn(2, 1, 2, 300, 4)
    for start in range(0, 300, 7):
        part = slice(start, start + 7)
        stored_keys, stored_values = cache.append(0, keys[:, :, part], values[:, :, part])
    assert torch.equal(stored_keys, keys) and torch.equal(stored_values, values)


def test_packed_documents_and_a_cache_together_are_refused() -> None:
    trunk = make_trunk("normalised")
    with pytest.raises(ValueError, match="leave document_ids out"):
        trunk(embeddings(4), torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.int64), KVCache(2))


def test_far_positions_give_finite_states_that_depend_on_order() -> None:
    trunk = make_trunk("yarn")
    x = embeddings(6)
    far = torch.arange(262_144 - 6, 262_144)[None]
    hidden = trunk(x, far).hidden
    assert hidden.isfinite().all()
    assert not torch.allclose(hidden, trunk(x, far.flip(1)).hidden)
    # rotary positions are relative: only the rounding of float32 angles tells the two places apart
    torch.testing.assert_close(hidden, trunk(x, torch.arange(6)[None]).hidden, rtol=0.0, atol=0.2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 10, "num_heads": 3}, "not divisible by num_heads"),
        ({"hidden_size": 9, "num_heads": 3}, "must be even"),
        ({"hidden_size": 8, "num_heads": 1, "head_dim": 16}, "at most hidden_size 8"),
        ({"hidden_size": 12, "num_heads": 3, "num_kv_heads": 2}, "does not divide num_heads 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynSIHA(**sizes)


@pytest.mark.parametrize("field", ["hidden_size", "num_layers", "num_heads"])
def test_an_empty_tower_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"TrunkConfig.{field} is 0"):
        TrunkConfig(**{field: 0})
