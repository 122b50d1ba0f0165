"""What image and audio patches share: their scale.

Notable:
- A patch is normalised by its own mean and standard deviation (the target of He et al. 2021,
  "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377, section 4.1): what is
  learned is structure, not brightness or loudness.
- The variance is floored at `FLAT_VARIANCE`, not at a numerical epsilon: below it a patch counts as
  flat, so that compression noise on a plain background is not blown up to full contrast.
- numpy, in place: it runs once an image in loader workers, where a copy costs as much as the sums.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLAT_VARIANCE = 1e-3
"""Squared contrast below which a patch is flat: about four of 256 brightness levels in [-1, 1]."""


class PatchScales(NamedTuple):
    """What normalising took out of patches.

    Args:
        mean: [n].
        log_std: [n] natural logarithm of the (floored) standard deviation.
    """

    mean: NDArray[np.float32]
    log_std: NDArray[np.float32]


def normalize_patches(patches: NDArray[np.float32], unit: float = 1.0) -> PatchScales:
    """Bring each patch to zero mean and unit variance by itself, in place.

    Args:
        patches: [n, d], overwritten.
        unit: what a step of 1 in `patches` is worth; the result is that of `unit * patches`.
    Returns:
        The scales that `restore_patches` takes.
    Source: arXiv 2111.06377, section 4.1 (the floor is ours).
    """
    size = np.float32(patches.shape[1])
    mean = np.einsum("nd->n", patches) / size  # half the time of .mean(axis=1)
    patches -= mean[:, None]
    variance = np.einsum("nd,nd->n", patches, patches) / size + np.float32(FLAT_VARIANCE / unit**2)
    patches *= (1 / np.sqrt(variance))[:, None]
    return PatchScales(mean * np.float32(unit), np.log(variance) / 2 + np.float32(math.log(unit)))


def restore_patches(values: NDArray[np.float32], scales: PatchScales) -> NDArray[np.float32]:
    """The patches before `normalize_patches`.

    Args:
        values: [n, d] normalised.
        scales: of the same patches.
    """
    return np.exp(scales.log_std)[:, None] * values + scales.mean[:, None]


def row_major_positions(rows: int, columns: int) -> Tensor:
    """[rows * columns, 2] int64: (x, y) of each patch, line by line."""
    positions = np.empty((rows, columns, 2), np.int64)
    positions[:, :, 0] = np.arange(columns)
    positions[:, :, 1] = np.arange(rows)[:, None]
    return torch.from_numpy(positions.reshape(-1, 2))
