"""What the tower makes of the pixels of a patch: the embedder and the head of images.

Notable:
- Patches arrive as bytes and become floats here, in the training process: a quarter of what the loader
  workers would have to keep, send and pin, and the arithmetic is nothing to whatever trains the tower.
- A token carries its patch normalised by itself, then the two numbers that this removes, brightness and
  contrast, each of about unit variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.patches import normalize_patches
from onn_lightning.nn import PatchEmbedder, PatchRegressionHead

NUM_STATISTICS = 2
"""Features beside the pixels: brightness and contrast of the patch."""

# Brings mean and log standard deviation of patches (pixels in [-1, 1]) to about unit variance.
MEAN_SCALE, LOG_STD_OFFSET, LOG_STD_SCALE = 2.0, 1.7, 0.8


def unit_range(pixels: Tensor) -> Tensor:
    """Bytes to floats: 0 (black) becomes -1, 255 (white) becomes 1."""
    return pixels.float() * (2 / 255) - 1


def patch_features(pixels: Tensor) -> Tensor:
    """[n, d] bytes -> [n, d + NUM_STATISTICS]: what the projection reads."""
    patches = normalize_patches(unit_range(pixels))
    statistics = (MEAN_SCALE * patches.mean, LOG_STD_SCALE * (patches.log_std + LOG_STD_OFFSET))
    return torch.cat((patches.values, *statistics), dim=1)


class PixelEmbedder(PatchEmbedder):
    """The linear projection of patches, normalised by themselves, rotated by (x, y).

    Args:
        pixels_per_patch: bytes in one patch.
        hidden_size: width of the trunk, divisible by 4.
    """

    def __init__(self, pixels_per_patch: int, hidden_size: int) -> None:
        super().__init__(pixels_per_patch + NUM_STATISTICS, hidden_size)

    def forward(self, features: Tensor, positions_2d: Tensor) -> Tensor:
        """features [n, pixels_per_patch] uint8, positions_2d [n, 2] -> [n, hidden_size]."""
        return super().forward(patch_features(features), positions_2d)


class PixelRegressionHead(PatchRegressionHead):
    """Mean squared error of the next patch, normalised by itself."""

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """hidden [m, hidden_size], targets [m, pixels_per_patch] uint8 -> loss [m]."""
        return super().forward(hidden, normalize_patches(unit_range(targets)).values)
