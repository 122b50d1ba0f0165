"""Images: geometry and budget, every Pillow mode, and bad files by name."""

from __future__ import annotations

import io
import math
import pickle
import struct
import warnings
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.image import ImageModality, fit_into_budget
from datamodules.pixels import NUM_STATISTICS, patch_features
from onn_lightning.modality import BadSampleError

GRADIENT = np.linspace(0, 255, 24 * 40, dtype=np.uint8).reshape(24, 40)


def brightness(modality: ImageModality, raw: object) -> torch.Tensor:
    """Mean of each patch in [-1, 1], as the tower is told it."""
    return seen(modality, raw)[:, -NUM_STATISTICS] / 2


def seen(modality: ImageModality, raw: object) -> torch.Tensor:
    """What the tower's projection reads: normalised pixels, brightness, contrast."""
    return patch_features(modality.encode(raw).features)  # type: ignore[arg-type]


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and brings almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@given(
    width=st.integers(1, 30_000),
    height=st.integers(1, 30_000),
    patch=st.integers(1, 40),
    budget=st.integers(1, 400),
)
def test_the_size_is_the_largest_of_the_same_shape_that_fits(
    width: int, height: int, patch: int, budget: int
) -> None:
    new_width, new_height = fit_into_budget(width, height, patch, budget)
    columns, rows = -(-new_width // patch), -(-new_height // patch)
    assert 1 <= new_width <= width and 1 <= new_height <= height
    assert columns * rows <= budget
    if (new_width, new_height) != (width, height):
        long, new_long = max((width, new_width), (height, new_height))
        larger = Fraction(new_long + 1, long)
        assert math.ceil(larger * width / patch) * math.ceil(larger * height / patch) > budget
        shape_error = abs(Fraction(new_width, new_height) - Fraction(width, height))  # half a pixel a side
        assert shape_error * new_height <= Fraction(1, 2) * (1 + Fraction(width, height)) or 1 in (
            new_width,
            new_height,
        )


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    patch=st.integers(2, 20),
    budget=st.integers(1, 40),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]),
    channels=st.sampled_from([1, 3]),
)
def test_any_size_and_mode_gives_finite_tokens_within_the_budget(
    width: int, height: int, patch: int, budget: int, mode: str, channels: int
) -> None:
    modality = ImageModality(patch, budget, channels, next_patch_loss=True)  # type: ignore[arg-type]
    segment = modality.encode(Image.new(mode, (width, height)))
    assert 1 <= len(segment) <= budget
    assert segment.features.shape == (len(segment), patch**2 * channels)
    assert segment.features.dtype == torch.uint8
    assert segment.targets is not None and torch.equal(segment.targets, segment.features)
    assert torch.isfinite(patch_features(segment.features)).all()


def test_patches_come_row_by_row_with_x_and_y() -> None:
    blocks = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((4, 4), np.uint8))
    modality = ImageModality(patch_size=4, channels=1)
    segment = modality.encode(Image.fromarray(blocks))
    assert segment.positions_2d is not None
    assert segment.positions_2d.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    expected = torch.arange(6) * 40 / 127.5 - 1
    torch.testing.assert_close(brightness(modality, Image.fromarray(blocks)), expected)


def test_a_token_holds_its_own_pixels_and_the_tower_sees_them_normalised_by_themselves() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    modality = ImageModality(patch_size=8, next_patch_loss=True)
    segment = modality.encode(Image.fromarray(pixels))
    patch = pixels[8:16, 16:24]  # x = 2, y = 1
    assert segment.features[5].tolist() == patch.reshape(-1).tolist()
    scaled = patch.astype(np.float64) / 127.5 - 1
    expected = ((scaled - scaled.mean()) / np.sqrt(scaled.var() + 1e-3)).reshape(-1)
    found = patch_features(segment.features)[5]
    np.testing.assert_allclose(found[:-NUM_STATISTICS], expected, atol=1e-5)
    spread = np.log(scaled.var() + 1e-3) / 2
    np.testing.assert_allclose(found[-NUM_STATISTICS:], [2 * scaled.mean(), 0.8 * (spread + 1.7)], atol=1e-5)
    assert ImageModality().encode(Image.fromarray(pixels)).targets is None
    head = modality.build_head(16)
    assert head is not None and segment.targets is not None
    loss = head(torch.zeros(6, 16), segment.targets)  # a new head predicts zeros
    np.testing.assert_allclose(loss[5].item(), np.square(expected).mean(), rtol=1e-5)


def test_an_image_that_fits_keeps_its_own_pixels_and_its_edge_is_repeated() -> None:
    modality = ImageModality(patch_size=16, channels=1)
    padded = np.pad(GRADIENT, ((0, 8), (0, 8)), mode="edge")
    given_image = modality.encode(Image.fromarray(GRADIENT))
    assert torch.equal(given_image.features, modality.encode(Image.fromarray(padded)).features)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1)])
def test_a_very_long_image_becomes_one_row_or_column_of_patches(
    size: tuple[int, int], tmp_path: Path
) -> None:
    segment = ImageModality(max_tokens=64).encode(saved(Image.new("RGB", size, "red"), tmp_path / "long.png"))
    assert len(segment) == min(64, max(size))
    assert segment.positions_2d is not None
    assert segment.positions_2d.max(dim=0).values.tolist() == [
        len(segment) - 1 if side > 1 else 0 for side in size
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(40, 24), (400, 240)])
def test_exif_orientation_is_applied(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    from PIL import ImageOps

    image = Image.fromarray(GRADIENT).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path / "turned.png", exif=exif)
    modality = ImageModality(patch_size=8, max_tokens=15, channels=1)
    expected = ImageOps.exif_transpose(Image.open(path))
    found = modality.encode(path)
    reference = modality.encode(expected)
    assert torch.equal(found.positions_2d, reference.positions_2d)  # type: ignore[arg-type]
    torch.testing.assert_close(brightness(modality, path), brightness(modality, expected), atol=0.01, rtol=0)


GREY_MODES = ["1", "L", "LA", "La"]
COLOUR_MODES = ["P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]


@pytest.mark.parametrize("mode", GREY_MODES + COLOUR_MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_shows_white_left_and_black_right(mode: str, channels: int) -> None:
    image = Image.new("L", (16, 8), 255)
    image.paste(0, (8, 0, 16, 8))
    via = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}.get(mode, "RGB" if mode not in ("1", "LA") else "L")
    image = image.convert(via)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")  # type: ignore[assignment]
    elif image.mode != mode:
        image = image.convert("RGBA").convert("PA") if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    modality = ImageModality(patch_size=8, channels=channels)  # type: ignore[arg-type]
    torch.testing.assert_close(brightness(modality, image), torch.tensor([1.0, -1.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("I;16", np.array([0, 0xFFFF], np.uint16)),
        ("I;16B", np.array([0, 0xFFFF], ">u2")),
        ("I", np.array([0, 0xFFFF], np.int32)),
        ("I", np.array([0, 0xFF], np.int32)),
        ("I", np.array([-70_000, 70_000], np.int32)),
        ("F", np.array([0, 1], np.float32)),
        ("F", np.array([0, 255], np.float32)),
        ("F", np.array([-3, 7], np.float32)),
    ],
)
def test_deep_modes_are_scaled_to_the_same_range(mode: str, values: np.ndarray) -> None:
    pixels = np.repeat(values, 8)[None].repeat(8, axis=0)  # black left, white right
    image = Image.frombytes(mode, (16, 8), pixels.tobytes())
    modality = ImageModality(patch_size=8, channels=1)
    torch.testing.assert_close(brightness(modality, image), torch.tensor([-1.0, 1.0]))
    small = ImageModality(patch_size=4, max_tokens=2, channels=3)
    torch.testing.assert_close(brightness(small, image), torch.tensor([-1.0, 1.0]), atol=0.1, rtol=0)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    modality = ImageModality()
    torch.testing.assert_close(brightness(modality, clear), torch.ones(1))
    palette = Image.new("P", (16, 16), 3)
    palette.putpalette([0] * 768)
    path = saved(palette, tmp_path / "hole.gif", transparency=3)
    torch.testing.assert_close(brightness(modality, path), torch.ones(1))
    half = Image.new("LA", (16, 16), (0, 128))
    torch.testing.assert_close(brightness(modality, half), torch.zeros(1), atol=0.01, rtol=0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"])
def test_every_format_reads_from_path_string_and_bytes_alike(suffix: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(GRADIENT).convert("RGB"), tmp_path / f"a.{suffix}")
    modality = ImageModality(patch_size=8)
    first = modality.encode(path)
    for raw in (str(path), path.read_bytes(), Image.open(path)):
        assert torch.equal(modality.encode(raw).features, first.features)
    torch.testing.assert_close(
        brightness(modality, path), brightness(modality, Image.fromarray(GRADIENT)), atol=0.025, rtol=0
    )


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (16, 16), shade) for shade in (255, 0, 0)]
    path = saved(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    torch.testing.assert_close(brightness(ImageModality(), path), torch.ones(1))


def test_a_jpeg_decoded_at_reduced_scale_looks_like_the_whole(tmp_path: Path) -> None:
    smooth = Image.fromarray(GRADIENT).convert("RGB").resize((1600, 960))
    path = saved(smooth, tmp_path / "large.jpg", quality=95)
    modality = ImageModality(patch_size=8, max_tokens=60)
    torch.testing.assert_close(brightness(modality, path), brightness(modality, smooth), atol=0.02, rtol=0)


def test_an_image_given_by_the_user_is_left_as_it_was(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GRADIENT).resize((640, 480)), tmp_path / "mine.jpg")
    image = Image.open(path)
    ImageModality(max_tokens=4).encode(image)
    assert image.size == (640, 480) and image.mode == "L"


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """name -> (file, word its message must hold)."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    cut = {}
    for suffix in ("png", "jpg", "webp", "bmp", "tiff", "ppm"):
        content = saved(noise, folder / f"whole.{suffix}").read_bytes()
        cut[suffix] = folder / f"cut.{suffix}"
        cut[suffix].write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("this is not a picture\n" * 40)
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (folder / "large.png").write_bytes(png_header(10_000, 9_000))
    (folder / "lying.png").write_bytes(png_header(5_000, 5_000))
    noise.save(folder / "drawing.eps")
    (folder / "folder.png").mkdir()
    return {
        "missing": (folder / "missing.png", "does not exist"),
        "nul in the path": (folder / "a\0b.png", "cannot be opened"),
        "folder": (folder / "folder.png", "name a regular file"),
        "empty": (folder / "empty.png", "0 bytes"),
        "text": (folder / "text.png", "not a readable PNG"),
        "eps": (folder / "drawing.eps", "not a readable PNG"),
        "bomb": (folder / "bomb.png", "limit"),
        "large": (folder / "large.png", "max_pixels"),
        "lying": (folder / "lying.png", "cut short"),
        **{f"cut {suffix}": (path, "") for suffix, path in cut.items()},
    }


def test_bad_files_are_refused_by_name_with_a_remedy_and_no_warning(tmp_path: Path) -> None:
    for what, (path, word) in bad_files(tmp_path).items():
        with warnings.catch_warnings(), pytest.raises(BadSampleError) as caught:
            warnings.simplefilter("error")
            ImageModality(max_pixels=80_000_000).encode(path)
        message = str(caught.value)
        assert str(path) in message, what
        assert word in message, (what, message)
        assert "drop" in message, (what, message)


@pytest.mark.parametrize("raw", [None, 7, np.zeros((4, 4)), ["a.png"]])
def test_an_unknown_kind_of_item_is_refused(raw: object) -> None:
    with pytest.raises(BadSampleError, match="path, bytes or a Pillow image"):
        ImageModality().encode(raw)  # type: ignore[arg-type]


def test_pixels_that_are_not_finite_and_images_without_pixels_are_refused() -> None:
    pixels = np.zeros((64, 64), np.float32)
    for value in (np.nan, np.inf):
        pixels[33, 17] = value
        with pytest.raises(BadSampleError, match="NaN or infinite"):
            ImageModality(patch_size=8, max_tokens=4).encode(Image.fromarray(pixels))
    with pytest.raises(BadSampleError, match="0 x 5"):
        ImageModality().encode(Image.new("RGB", (0, 5)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_tokens_or_a_bad_sample_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(WHOLE_FILES)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        segment = ImageModality(patch_size=8, max_tokens=16, max_pixels=1_000_000).encode(bytes(content))
    except BadSampleError:
        return
    assert 1 <= len(segment) <= 16


def whole_files() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    contents = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
        Image.fromarray(GRADIENT).convert("RGB").save(buffer, kind, **options)
        contents.append(buffer.getvalue())
    return contents


WHOLE_FILES = whole_files()


@pytest.mark.parametrize(
    "arguments", [{"patch_size": 0}, {"max_tokens": 0}, {"max_pixels": 0}, {"channels": 2}]
)
def test_arguments_out_of_range_are_refused_by_name(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ImageModality(**arguments)  # type: ignore[arg-type]


def test_a_copy_in_a_loader_worker_encodes_alike() -> None:
    modality = ImageModality(patch_size=8, channels=1)
    image = Image.fromarray(GRADIENT)
    copy = pickle.loads(pickle.dumps(modality))
    assert torch.equal(copy.encode(image).features, modality.encode(image).features)


def test_the_embedder_takes_what_encode_gives() -> None:
    modality = ImageModality(patch_size=8, next_patch_loss=True)
    segment = modality.encode(Image.fromarray(GRADIENT))
    embedded = modality.build_embedder(32)(segment.features, segment.positions_2d)
    assert embedded.shape == (len(segment), 32)
    assert 0.5 < embedded.std() < 2
    head = modality.build_head(32)
    assert head is not None and ImageModality().build_head(32) is None
    output = head(embedded, segment.targets)
    assert getattr(output, "loss", output).shape == (len(segment),)
