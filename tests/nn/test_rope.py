"""Positions against transformers' implementation, and the geometry of the 2-D rotation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from onn_lightning.nn import AdditivePositions, YarnScaling
from onn_lightning.nn.rope import RotaryPositions, apply_rotary, rotary_frequencies, rotate_2d


def llama_config(head_dim: int, theta: float, yarn: YarnScaling | None = None) -> LlamaConfig:
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": theta}
    if yarn is not None:
        rope |= {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
        }
        if yarn.attention_factor is not None:
            rope["attention_factor"] = yarn.attention_factor
    window = 262_144 if yarn is None else int(yarn.factor * yarn.original_max_position)
    return LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=window,
        rope_parameters=rope,
    )


@pytest.mark.parametrize(
    ("head_dim", "theta", "yarn"),
    [
        (64, 1e6, YarnScaling(8.0)),
        (128, 1e6, YarnScaling(32.0)),
        (128, 1e4, YarnScaling(16.0, original_max_position=4096)),
        (64, 1e4, YarnScaling(4.0, original_max_position=2048, beta_fast=16.0, beta_slow=2.0)),
        (96, 5e5, YarnScaling(2.5, original_max_position=8192, attention_factor=1.3)),
        (16, 1e4, YarnScaling(4.0, original_max_position=64)),
        (8, 100.0, YarnScaling(4.0, original_max_position=16)),
        (1024, 1e6, YarnScaling(8.0)),
        (64, 1e6, YarnScaling(1.0)),
    ],
)
def test_yarn_frequencies_and_attention_factor_equal_those_of_transformers(
    head_dim: int, theta: float, yarn: YarnScaling
) -> None:
    expected, expected_factor = ROPE_INIT_FUNCTIONS["yarn"](llama_config(head_dim, theta, yarn), device="cpu")
    frequencies, factor = rotary_frequencies(head_dim, theta, yarn)
    torch.testing.assert_close(frequencies, expected, rtol=2e-6, atol=0.0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("yarn", [None, YarnScaling(8.0)])
@pytest.mark.parametrize("head_dim", [8, 64])
def test_rotated_queries_and_keys_equal_those_of_llama(head_dim: int, yarn: YarnScaling | None) -> None:
    theta = 1e6
    positions = torch.tensor([[0, 1, 2, 100, 32_767, 131_072, 262_144], [5, 4, 3, 2, 1, 0, 7]])
    q, k = torch.randn(2, 2, 3, 7, head_dim)
    cos, sin = LlamaRotaryEmbedding(llama_config(head_dim, theta, yarn))(q, positions)
    expected_q, expected_k = apply_rotary_pos_emb(q, k, cos, sin)
    rotary = RotaryPositions(head_dim, theta, yarn)(positions)
    torch.testing.assert_close(apply_rotary(q, *rotary), expected_q)
    torch.testing.assert_close(apply_rotary(k, *rotary), expected_k)


def test_neighbours_far_out_are_told_apart_even_under_bfloat16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        rotary = RotaryPositions(64, 1e6, YarnScaling(8.0)).bfloat16()
        cos, sin = rotary(torch.tensor([[262_143, 262_144]]))
    assert cos.dtype == sin.dtype == torch.float32
    assert not torch.allclose(cos[..., 0, :], cos[..., 1, :], atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(0, 20_000), distance=st.integers(0, 500), seed=st.integers(0, 100))
def test_attention_scores_depend_on_the_distance_alone(shift: int, distance: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, 32, generator=generator, dtype=torch.float64)
    rotary = RotaryPositions(32, 1e4)

    def score(at_q: int, at_k: int) -> torch.Tensor:
        rotated_q = apply_rotary(q, *rotary(torch.tensor([[at_q]])))
        return (rotated_q * apply_rotary(k, *rotary(torch.tensor([[at_k]])))).sum()

    # the angle of a float32 position times a float32 frequency is good to 2e-3 rad at 20,000
    torch.testing.assert_close(score(distance, 0), score(distance + shift, shift), rtol=0.0, atol=0.05)


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 60),
    y=st.integers(0, 60),
    dx=st.integers(-30, 30),
    dy=st.integers(-30, 30),
    shift_x=st.integers(-40, 40),
    shift_y=st.integers(-40, 40),
    quarter_width=st.integers(1, 16),
)
def test_inner_products_of_rotated_patches_depend_on_dx_and_dy_only(
    x: int, y: int, dx: int, dy: int, shift_x: int, shift_y: int, quarter_width: int
) -> None:
    a, b = torch.randn(2, 1, 4 * quarter_width, dtype=torch.float64)

    def product(x: int, y: int) -> torch.Tensor:
        first = rotate_2d(a, torch.tensor([[x, y]]))
        return (first * rotate_2d(b, torch.tensor([[x + dx, y + dy]]))).sum()

    torch.testing.assert_close(product(x, y), product(x + shift_x, y + shift_y), rtol=0.0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(x=st.integers(-500, 500), y=st.integers(-500, 500))
def test_the_2d_rotation_keeps_norms(x: int, y: int) -> None:
    features = torch.randn(3, 24, dtype=torch.float64)
    rotated = rotate_2d(features, torch.tensor([[x, y]]).expand(3, 2))
    torch.testing.assert_close(rotated.norm(dim=-1), features.norm(dim=-1), rtol=1e-6, atol=1e-6)


def test_half_of_the_channels_turn_by_x_and_half_by_y() -> None:
    features = torch.randn(1, 16)
    origin, along_x, along_y = (
        rotate_2d(features, torch.tensor([place])) for place in ([0, 0], [3, 0], [0, 3])
    )
    assert torch.equal(origin, features)
    moved_by_x, moved_by_y = (along_x != origin)[0], (along_y != origin)[0]
    assert moved_by_x.sum() == moved_by_y.sum() == 8 and not (moved_by_x & moved_by_y).any()


def test_rotation_is_the_product_of_complex_numbers() -> None:
    x = torch.randn(5, 12, dtype=torch.float64)
    angles = torch.randn(5, 6, dtype=torch.float64)
    turned = torch.complex(x[:, :6], x[:, 6:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(apply_rotary(x, angles.cos(), angles.sin()), expected)


def test_extending_the_window_scales_additive_and_rotary_positions_alike() -> None:
    yarn = YarnScaling(8.0, original_max_position=1024, attention_factor=1.0)
    positions = torch.arange(0, 8192, 7)[None]
    cos, sin = RotaryPositions(32, 1e4, yarn)(positions)
    additive = AdditivePositions(32, 1e4, yarn, initial_gain=1.0)(positions)
    assert torch.equal(additive, torch.cat((cos, sin), dim=-1)[:, 0])
    slowest = [RotaryPositions(32, 1e4, scaling)(torch.ones(1, 1))[1][..., -1] for scaling in (None, yarn)]
    torch.testing.assert_close(slowest[0] / slowest[1], torch.full((1, 1, 1), 8.0))


def test_far_positions_are_told_apart_whatever_type_the_weights_have() -> None:
    positions = torch.tensor([[262_143, 262_144]])
    rotary, additive = RotaryPositions(32, 1e6), AdditivePositions(32, 1e6)
    expected = rotary(positions), additive(positions)
    cast = rotary.bfloat16()(positions), additive.bfloat16()(positions)
    assert torch.equal(torch.stack(cast[0]), torch.stack(expected[0]))
    torch.testing.assert_close(cast[1].float(), expected[1], rtol=1e-2, atol=0.0)


def test_additive_positions_have_the_gain_as_their_only_parameter_and_bounded_size() -> None:
    positions = AdditivePositions(32, 1e6, initial_gain=0.1)
    embedded = positions(torch.tensor([[0, 1, 262_144]]))
    assert [name for name, _ in positions.named_parameters()] == ["gain"]
    assert embedded.shape == (1, 3, 32)
    torch.testing.assert_close(embedded.square().mean(dim=-1).sqrt(), torch.full((1, 3), 0.1 * 0.5**0.5))


@pytest.mark.parametrize("settings_", [{"factor": 0.5}, {"factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0}])
def test_an_impossible_extension_is_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="YarnScaling"):
        YarnScaling(**settings_)


def test_widths_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="even number of channels, got 7"):
        rotary_frequencies(7, 1e4)
    with pytest.raises(ValueError, match="divisible by 4"):
        rotate_2d(torch.randn(1, 6), torch.zeros(1, 2))
