"""Positions: 1-D rotary with YaRN, 2-D rotary for patches, additive 1-D positions.

Notable:
- One function, `rotary_frequencies`, makes the frequencies of all of them, so that extending the
  context window with YaRN extends the rotary AND the additive positions by the same scaling.
- `apply_rotary` rotates the pairs (i, i + d/2) - the half-split convention of Llama checkpoints.
- `rotate_2d` turns half of the channels by x and half by y: inner products of two rotated vectors
  depend on (dx, dy) alone.
- Angles are computed in float32 whatever the type of the features: at position 262,144 bfloat16
  could not tell neighbours apart. Frequencies are made when and where they are needed: a buffer of them
  would be rounded with the weights (`precision: bf16-true`), a copy from the host would be waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class YarnScaling:
    """YaRN extension of the context window (Peng et al. 2023, arXiv 2309.00071).

    Args:
        factor: new window / native window, >= 1; e.g. 8 takes 32,768 tokens to 262,144.
        original_max_position: the native window in tokens, the one trained with.
        beta_fast: rotations over the native window above which a frequency is left as it is.
        beta_slow: rotations below which a frequency is fully interpolated.
        attention_factor: multiplies cos and sin (and so tempers the logits); None: the paper's
            0.1 * ln(factor) + 1.
    Raises:
        ValueError: for a factor below 1 or betas in the wrong order.
    """

    factor: float
    original_max_position: int = 32_768
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(
                f"YarnScaling.factor is {self.factor}: it must be >= 1 (new window / native window)"
            )
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"YarnScaling needs beta_fast > beta_slow, got {self.beta_fast} <= {self.beta_slow}"
            )


def rotary_frequencies(
    dim: int, theta: float, yarn: YarnScaling | None = None, device: torch.device | None = None
) -> tuple[Tensor, float]:
    """Angular frequencies (radians a position) of `dim / 2` rotary pairs.

    Args:
        dim: channels to rotate, even.
        theta: base of the geometric series (RoPE, Su et al. 2021, arXiv 2104.09864).
        yarn: window extension, or None.
        device: where they are needed.
    Returns:
        ([dim / 2] float32 frequencies, factor for cos and sin).
    Raises:
        ValueError: for an odd number of channels.
    """
    if dim % 2:
        raise ValueError(f"rotary positions need an even number of channels, got {dim}")
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    if yarn is None:
        return frequencies, 1.0

    def pair_that_turns(rotations: float) -> float:
        """Index of the (fractional) pair that makes so many turns over the native window."""
        turns = yarn.original_max_position / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    pair = torch.arange(dim // 2, dtype=torch.float32, device=device)
    interpolated = ((pair - low) / max(high - low, 1e-3)).clamp(0, 1)  # 0: keep, 1: divide by factor
    frequencies = frequencies / yarn.factor * interpolated + frequencies * (1 - interpolated)
    attention_factor = yarn.attention_factor
    if attention_factor is None:
        attention_factor = 0.1 * math.log(yarn.factor) + 1.0
    return frequencies, attention_factor


class RotaryPositions(nn.Module):
    """Cosines and sines of 1-D rotary positions for the queries and keys of one head size."""

    def __init__(self, head_dim: int, theta: float, yarn: YarnScaling | None = None) -> None:
        super().__init__()
        self._arguments = (head_dim, theta, yarn)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> (cos, sin), each [B, 1, T, head_dim / 2] float32."""
        frequencies, factor = rotary_frequencies(*self._arguments, device=positions.device)
        angles = positions[:, None, :, None].float() * frequencies
        return angles.cos() * factor, angles.sin() * factor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + d/2) of x.

    Args:
        x: [..., d].
        cos, sin: [..., d / 2], broadcastable to x's leading shape.
    Returns:
        [..., d] in x's type.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_2d(x: Tensor, positions_2d: Tensor, theta: float = 100.0) -> Tensor:
    """Rotate patch features by their place in the medium: half of the channels by x, half by y.

    Args:
        x: [n, d], d divisible by 4.
        positions_2d: [n, 2] (x, y); audio: x = time, y = frequency.
        theta: base of the frequencies; 100 spreads the turns over grids of tens to hundreds of
            patches (as DINOv3 does, arXiv 2508.10104).
    Returns:
        [n, d], each row of unchanged norm.
    Raises:
        ValueError: if d is not divisible by 4.
    """
    if x.shape[-1] % 4:
        raise ValueError(f"rotate_2d needs a width divisible by 4 (pairs for x and for y), got {x.shape[-1]}")
    frequencies, _ = rotary_frequencies(x.shape[-1] // 2, theta, device=x.device)
    angles = positions_2d.to(torch.float32)[..., None] * frequencies  # [n, 2, d / 4]
    halves = x.unflatten(-1, (2, -1))  # [n, 2, d / 2]
    return apply_rotary(halves, angles.cos(), angles.sin()).flatten(-2)


class AdditivePositions(nn.Module):
    """`pos_1d`: the sinusoidal embedding of a token's place in its document, times a learned gain.

    The frequencies are those of the trunk's rotary positions at full width, YaRN included.
    """

    def __init__(
        self, hidden_size: int, theta: float, yarn: YarnScaling | None = None, initial_gain: float = 0.1
    ) -> None:
        super().__init__()
        self._arguments = (hidden_size, theta, yarn)
        self.gain = nn.Parameter(torch.full((1,), initial_gain))

    def forward(self, positions: Tensor) -> Tensor:
        """positions [B, T] -> [B, T, hidden_size] in the gain's type."""
        frequencies, _ = rotary_frequencies(*self._arguments, device=positions.device)
        angles = positions[..., None].float() * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.gain.dtype) * self.gain
