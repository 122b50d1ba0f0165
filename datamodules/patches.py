"""What image and audio patches share: their scale and their places.

Notable:
- A patch is normalised by its own mean and standard deviation (the target of He et al. 2021,
  "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377, section 4.1): what is
  learned is structure, not brightness or loudness.
- The variance is floored at `FLAT_VARIANCE`, not at a numerical epsilon: below it a patch counts as
  flat, so that compression noise on a plain background is not blown up to full contrast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FLAT_VARIANCE = 1e-3
"""Squared contrast below which a patch is flat: about four of 256 brightness levels in [-1, 1]."""


class NormalizedPatches(NamedTuple):
    """Patches of zero mean and unit variance, and what was taken out of them.

    Args:
        values: [n, d].
        mean: [n, 1].
        log_std: [n, 1] natural logarithm of the (floored) standard deviation.
    """

    values: Tensor
    mean: Tensor
    log_std: Tensor


def normalize_patches(patches: Tensor) -> NormalizedPatches:
    """Normalise each patch by itself.

    Args:
        patches: [n, d] float32.
    Source: arXiv 2111.06377, section 4.1 (the floor is ours).
    """
    mean = patches.mean(dim=-1, keepdim=True)
    centered = patches - mean
    variance = centered.square().mean(dim=-1, keepdim=True) + FLAT_VARIANCE
    return NormalizedPatches(centered * variance.rsqrt(), mean, variance.log() / 2)


def row_major_positions(rows: int, columns: int) -> Tensor:
    """[rows * columns, 2] int64: (x, y) of each patch, line by line."""
    positions = np.empty((rows, columns, 2), np.int64)
    positions[:, :, 0] = np.arange(columns)
    positions[:, :, 1] = np.arange(rows)[:, None]
    return torch.from_numpy(positions.reshape(-1, 2))
