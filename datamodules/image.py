"""Images as patches: any size, shape and Pillow mode, in row-major order with (x, y).

Notable:
- A token budget, never a crop: an image that needs more than `max_tokens` patches is scaled down,
  its aspect ratio kept, to the largest size that fits; a smaller one keeps its own pixels. The
  last row and column of patches are completed by repeating the edge, so geometry stays true (a
  20000 x 1 picture becomes one row of patches).
- A token carries the bytes of its patch, row by row, channels last; `pixels.py` says what the tower makes of
  them. The optional next-patch loss regresses the patch normalised by itself.
- Size is judged by the header before anything is decoded; JPEG is decoded at reduced scale; only
  `FORMATS` are opened (EPS would start another program). Peak memory is 4 to 16 bytes per pixel of
  the file (JPEG: far less), so `max_pixels` bounds it; `MAX_SCANS` bounds the time of a JPEG that
  refines the same pixels over and over.
- Transparency is laid over white; EXIF orientation is applied; animations give their first frame;
  depths beyond 8 bits are resized as they are, then brought to 8 by the rule of `_value_range`.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from bisect import bisect_right
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from datamodules.media import open_media
from datamodules.patches import row_major_positions
from onn_lightning.batch import Segment
from onn_lightning.modality import BadSampleError, Modality, Preview

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names of the formats that are opened."""

MAX_SCANS = 64
"""Passes over the pixels that a progressive JPEG may take; encoders write about ten."""

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets the picture upright."""

# Damage surfaces from Pillow's decoders as any of these.
DECODING_ERRORS = (
    OSError,  # UnidentifiedImageError too
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)


class ImageModality(Modality):
    """Images cut into square patches.

    Args:
        patch_size: p, pixels along a side of a patch.
        max_tokens: patches an image may have; larger images are scaled down.
        channels: 3 (RGB) or 1 (grey).
        max_pixels: width x height above which a file is refused undecoded. Values above Pillow's own
            limit also need `PIL.Image.MAX_IMAGE_PIXELS` raised.
        next_patch_loss: predict each patch's normalised pixels from the token before it.
    Raises:
        ValueError: if a number is out of range.
    """

    name = "image"

    def __init__(
        self,
        patch_size: int = 16,
        max_tokens: int = 256,
        channels: Literal[1, 3] = 3,
        max_pixels: int = 89_478_485,
        next_patch_loss: bool = False,
    ) -> None:
        positive = {"patch_size": patch_size, "max_tokens": max_tokens, "max_pixels": max_pixels}
        for argument, value in positive.items():
            if value < 1:
                raise ValueError(f"ImageModality: {argument} is {value}, it must be at least 1")
        if channels not in (1, 3):
            raise ValueError(f"ImageModality: channels is {channels}, it must be 3 (RGB) or 1 (grey)")
        self.patch_size = patch_size
        self.max_tokens = max_tokens
        self.channels = channels
        self.max_pixels = max_pixels
        self.next_patch_loss = next_patch_loss

    @property
    def pixels_per_patch(self) -> int:
        """Numbers in a patch, p * p * channels."""
        return self.patch_size**2 * self.channels

    def encode(self, raw: str | Path | bytes | Image.Image) -> Segment:
        """Turn an image into patches.

        Args:
            raw: path, content of a file, or Pillow image (its current frame).
        Returns:
            n tokens in row-major order: features [n, p * p * channels] uint8, positions_2d [n, 2] (x, y)
            in patches, targets like features with `next_patch_loss`.
        Raises:
            BadSampleError: missing, damaged, of another format, or too large; names the file.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is either refused or mended here
            if isinstance(raw, Image.Image):
                pixels = self._pixels(raw, f"image of mode {raw.mode} in memory", may_draft=False)
            elif isinstance(raw, str | Path | bytes):
                with open_media(raw, "image") as (name, stream):
                    image = _open(stream, name)
                    _check_scans(image, stream, name)
                    pixels = self._pixels(image, name, may_draft=True)
            else:
                raise BadSampleError(
                    f"image given as {type(raw).__name__}: give a path, bytes or a Pillow image"
                )
        return self._patchify(pixels)

    def build_embedder(self, hidden_size: int) -> nn.Module:
        """Linear projection of the normalised patch, rotated by (x, y)."""
        from datamodules.pixels import PixelEmbedder

        return PixelEmbedder(self.pixels_per_patch, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module | None:
        """Regression of the next patch, or None without `next_patch_loss`."""
        from datamodules.pixels import PixelRegressionHead

        return PixelRegressionHead(hidden_size, self.pixels_per_patch) if self.next_patch_loss else None

    def placeholder(self) -> Segment:
        """A black square of one patch."""
        return self.encode(Image.new("RGB", (self.patch_size, self.patch_size)))

    def pixels(self, segment: Segment) -> int:
        """Width x height of its patches."""
        return len(segment) * self.patch_size**2

    def picture(self, segment: Segment) -> Tensor:
        """The patches put back together: [height, width, channels] uint8, grey where there is no patch."""
        assert segment.positions_2d is not None
        x, y = (segment.positions_2d - segment.positions_2d.amin(dim=0)).unbind(dim=1)
        rows, columns, side = int(y.max()) + 1, int(x.max()) + 1, self.patch_size
        canvas = torch.full((rows, columns, side, side * self.channels), 128, dtype=torch.uint8)
        canvas[y, x] = segment.features.view(-1, side, side * self.channels)
        return canvas.transpose(1, 2).reshape(rows * side, columns * side, self.channels)

    def preview(self, segment: Segment) -> Preview:
        """The picture as the tower is given it."""
        picture = self.picture(segment)
        height, width, _ = picture.shape
        return Preview(picture=picture.squeeze(2), caption=f"{width} x {height} pixels")

    def _pixels(self, image: Image.Image, name: str, may_draft: bool) -> NDArray[np.uint8]:
        """Decode, set upright, scale into the budget: [height, width(, channels)]."""
        width, height = image.size
        if width * height > self.max_pixels:
            raise BadSampleError(
                f"{name} has {width} x {height} pixels, more than max_pixels={self.max_pixels}: "
                "scale it down, raise max_pixels or drop it"
            )
        if width * height == 0:
            raise BadSampleError(f"{name} has {width} x {height} pixels: drop it")
        # Both sides may swap when the picture is set upright; the budget does not mind.
        size = fit_into_budget(width, height, self.patch_size, self.max_tokens)
        try:
            orientation = _orientation(image)
            if may_draft and size != image.size:
                image.draft(None, (2 * size[0], 2 * size[1]))  # JPEG: decode at a fraction of the size
            image.load()
            plain = _plain_mode(image, self.channels)
            low, high = _value_range(image)
            if plain.size != size:
                plain = plain.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        except DECODING_ERRORS as error:
            raise BadSampleError(
                f"{name} is damaged or cut short ({error or type(error).__name__}): "
                "fetch or encode it again, or drop it"
            ) from error
        if orientation in UPRIGHT:
            plain = plain.transpose(UPRIGHT[orientation])
        if plain.mode == "F":
            plain = Image.fromarray(_to_bytes(np.asarray(plain), low, high, name))
        elif plain.mode == "RGBA":
            plain = Image.alpha_composite(Image.new("RGBA", plain.size, "white"), plain)
        mode = "L" if self.channels == 1 else "RGB"
        return np.asarray(plain if plain.mode == mode else plain.convert(mode))

    def _patchify(self, pixels: NDArray[np.uint8]) -> Segment:
        """[height, width(, channels)] -> tokens."""
        side = self.patch_size
        rows, columns = -(-pixels.shape[0] // side), -(-pixels.shape[1] // side)
        for axis, count in enumerate((rows, columns)):
            if pixels.shape[axis] != count * side:
                pixels = pixels.take(np.arange(count * side), axis, mode="clip")  # repeats the edge
        cells = pixels.reshape(rows, side, columns, -1).transpose(0, 2, 1, 3)  # [rows, columns, p, p * C]
        patches = torch.from_numpy(cells.copy()).view(rows * columns, -1)
        return Segment(
            modality=self.name,
            features=patches,
            positions_2d=row_major_positions(rows, columns),
            targets=patches if self.next_patch_loss else None,
        )


def fit_into_budget(width: int, height: int, patch_size: int, max_tokens: int) -> tuple[int, int]:
    """Largest size of the same shape, never above the original, that has at most `max_tokens` patches.

    Exact: the number of patches only grows where a side passes a multiple of `patch_size`, so the best
    scale puts one of the two sides onto such a multiple, and the count grows with that multiple.

    Args:
        width, height: pixels.
        patch_size: pixels.
        max_tokens: ceil(width / p) * ceil(height / p) of the result is at most this.
    Returns:
        (width, height) in pixels, each at least 1.
    """
    if -(-width // patch_size) * -(-height // patch_size) <= max_tokens:
        return width, height

    def patches_along(side: int, other: int) -> int:
        def total(count: int) -> int:
            return count * -(-other * count // side)

        return bisect_right(range(1, max_tokens + 1), max_tokens, key=total)

    columns, rows = patches_along(width, height), patches_along(height, width)
    if columns * height >= rows * width:  # the scales columns * p / width and rows * p / height, compared
        return columns * patch_size, max(1, round(height * columns * patch_size / width))
    return max(1, round(width * rows * patch_size / height)), rows * patch_size


def _open(stream: BinaryIO, name: str) -> Image.Image:
    try:
        return Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSampleError(
            f"{name} exceeds Pillow's own limit ({error}): scale it down or drop it"
        ) from error
    except DECODING_ERRORS as error:
        raise BadSampleError(
            f"{name} is not a readable {', '.join(FORMATS)} file: convert it to one or drop it"
        ) from error


def _check_scans(image: Image.Image, stream: BinaryIO, name: str) -> None:
    """Refuse a JPEG of endless scans: a few bytes each, and each a pass over all pixels."""
    if not image.info.get("progressive"):
        return
    stream.seek(0)
    scans = stream.read().count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise BadSampleError(
            f"{name} is a JPEG of {scans} scans, at most {MAX_SCANS} are taken: encode it again or drop it"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) where there is none or the EXIF block itself is damaged."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except DECODING_ERRORS:
        return 1


def _plain_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image in one of the modes that can be resized well: L, RGB, RGBA or F; grey where that is asked."""
    if image.mode == "F" or image.mode.startswith("I"):
        mode = "F"
    elif image.has_transparency_data:
        image, mode = image.convert("LA") if image.mode == "La" else image, "RGBA"
    elif image.mode in ("1", "L"):
        mode = "L"
    else:
        image = image if image.mode == "RGB" else image.convert("RGB")
        mode = "L" if channels == 1 else "RGB"  # resizing one channel takes a third of the time
    return image if image.mode == mode else image.convert(mode)  # converting to the same mode copies


def _to_bytes(values: NDArray[np.float32], low: float, high: float, name: str) -> NDArray[np.uint8]:
    """Values of a deep grey image, low..high, as 0..255."""
    if not math.isfinite(high - low) or not np.isfinite(values).all():
        raise BadSampleError(f"{name} holds NaN or infinite pixels: replace them or drop it")
    scaled = (values - np.float32(low)) * np.float32(255 / max(high - low, 1e-30))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)  # bicubic weights overshoot at edges


def _value_range(image: Image.Image) -> tuple[float, float]:
    """Values of black and white. 8 bits: 0 and 255; 16 bits: 0 and 65535.

    Integers of 32 bits and floats do not say: 0..1 (floats only), 0..255 and 0..65535 (integers only)
    are taken where the pixels lie inside, otherwise the image's own extremes.
    """
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    if image.mode not in ("I", "F"):
        return 0.0, 255.0
    low, high = cast(tuple[float, float], image.getextrema())  # one band
    for white in (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= white:
            return 0.0, white
    return float(low), float(high)
