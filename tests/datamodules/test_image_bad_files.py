"""Images that are not what they seem: bombs, strange depths and formats, files that would start programs."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encode_in_child import Outcome, encode_all
from PIL import Image

from datamodules.image import ImageModality
from datamodules.pixels import unit_range
from onn_lightning.modality import BadSampleError

PNG = b"\x89PNG\r\n\x1a\n"
NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
SHADES = np.linspace(0, 255, 24 * 40).reshape(24, 40)  # from black to white


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, colour: int, lines: bytes, extra: bytes = b"", size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of given depth and colour type; `extra` stands before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    return PNG + header + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def small_png(extra: bytes) -> bytes:
    return png(8, 0, bytes(9 * 8), extra)


@cache
def many_zeros() -> bytes:
    """256 MiB, compressed."""
    compressor = zlib.compressobj()
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(256)) + compressor.flush()


def gif(width: int, height: int, frames: int) -> bytes:
    """Frames of one pixel each on a screen of any size."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + frame * frames + b"\x3b"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animated(kind: str, frames: int) -> bytes:
    """White, then black."""
    images = [Image.new("RGB", (64, 64), "white"), *(Image.new("RGB", (64, 64)) for _ in range(frames - 1))]
    return saved(images[0], kind, save_all=True, append_images=images[1:])


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG of 16 million pixels whose last scan comes again and again."""
    content = saved(Image.new("L", (4000, 4000), 90), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def eps(start: Path) -> bytes:
    """A drawing that, if anything ran it, would leave a file."""
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n({start}) (w) file\n".encode()


BOMBS: dict[str, tuple[Any, str]] = {
    "text.png": (lambda: small_png(chunk(b"zTXt", b"Comment\0\0" + many_zeros())), "not a readable"),
    "utf8.png": (
        lambda: small_png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + many_zeros())),
        "not a readable",
    ),
    "profile.png": (lambda: small_png(chunk(b"iCCP", b"icc\0\0" + many_zeros())), "not a readable"),
    "texts.png": (
        lambda: small_png(
            b"".join(chunk(b"zTXt", b"k%d\0\0" % k + zlib.compress(bytes(10**6))) for k in range(300))
        ),
        "not a readable",
    ),
    "pixels.png": (lambda: png(8, 0, b"", size=(60_000, 60_000)), "limit"),
    "pixels.gif": (lambda: gif(65_535, 65_535, 1), "limit"),
    "pixels.ppm": (lambda: b"P6 60000 60000 255\n" + bytes(100), "limit"),
    "pixels.bmp": (
        lambda: (
            b"BM"
            + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
        ),
        "limit",
    ),
    "tags.tiff": (
        lambda: (
            b"II*\0\x08\0\0\0\x03\0"
            + struct.pack("<HHII", 256, 4, 0x3FFF_FFFF, 0)
            + struct.pack("<HHII", 257, 3, 1, 10)
            + struct.pack("<HHII", 273, 4, 0x3FFF_FFFF, 0)
            + bytes(4)
        ),
        "not a readable",
    ),
    "scans.jpg": (lambda: jpeg_of_scans(5000), "scans"),
    "frames.gif": (lambda: gif(64, 64, 200_000), ""),
    "frames.webp": (lambda: animated("WEBP", 200), ""),
    "frames.png": (lambda: animated("PNG", 200), ""),
    "pages.tiff": (lambda: animated("TIFF", 200), ""),
}
"""name -> (what makes the content, word of its refusal; "": the first frame is taken)."""

LARGE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

UNLISTED = {
    "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x68\4\0\0\x16\0\0\0" + bytes(1200),
    "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(300),
    "xbm": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0x00};\n",
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
    "mp4": b"\0\0\0\x20ftypisom" + bytes(300),
    "zip": b"PK\3\4" + bytes(300),
    "pickle": b"\x80\x04c__builtin__\neval\n.",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What a child process made of all bombs, all formats behind a PNG's name, and all damaged files."""
    folder, programs = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("programs")
    trace = programs / "started"
    for program in ("gs", "gswin64c", "djpeg", "xv", "convert", "xdg-open"):
        (programs / program).write_text(f"#!/bin/sh\necho {program} >> {trace}\n")
        (programs / program).chmod(0o755)
    for name, (make, _) in BOMBS.items():
        (folder / name).write_bytes(make())
    for name, content in {**UNLISTED, "eps": eps(trace)}.items():
        (folder / f"{name}.png").write_bytes(content)
    whole = Image.fromarray(NOISE)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        content = saved(whole, kind)
        (folder / f"damaged.{kind}").write_bytes(content[:100] + bytes(60) + content[160:])
    for kind in LARGE:
        image = Image.new("RGBA" if kind in ("PNG", "WEBP") else "RGB", (3000, 3000), "red")
        options = {"lossless": True, "method": 0} if kind == "WEBP" else {}
        (folder / f"large.{kind}").write_bytes(saved(image, kind, **options))
    (folder / "damaged_deflate.tiff").write_bytes(
        saved(whole, "TIFF", compression="tiff_deflate")[:300] + bytes(2000)
    )
    found = encode_all("image", folder, timeout=120, PATH=str(programs))
    assert not trace.exists()
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_memory_and_time(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    word = BOMBS[name][1]
    assert outcome.mebibytes < 80  # Pillow's limit on texts is 64
    assert outcome.seconds < 5  # mere milliseconds on an idle machine
    assert outcome.tokens == (0 if word else 16)
    assert word in outcome.message and (not word or name in outcome.message)


@pytest.mark.parametrize("kind", LARGE)
def test_memory_is_at_most_sixteen_bytes_a_pixel(outcomes: dict[str, Outcome], kind: str) -> None:
    outcome = outcomes[f"large.{kind}"]
    assert outcome.tokens == 256
    assert outcome.mebibytes < 16 * 3000 * 3000 / 2**20 + 20


@pytest.mark.parametrize("name", [*UNLISTED, "eps"])
def test_another_format_behind_a_png_name_is_refused_and_starts_nothing(
    outcomes: dict[str, Outcome], name: str
) -> None:
    assert "not a readable PNG" in outcomes[f"{name}.png"].message


def test_damaged_files_leave_nothing_on_the_terminal(outcomes: dict[str, Outcome]) -> None:
    damaged = [outcome for name, outcome in outcomes.items() if name.startswith("damaged")]
    assert len(damaged) == 8  # that the child's stderr was empty is asserted where it ends
    assert all(outcome.tokens or "drop it" in outcome.message for outcome in damaged)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "txt"])
def test_the_content_decides_not_the_name(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(saved(Image.fromarray(NOISE), kind))
    modality = ImageModality(patch_size=8)
    assert torch.equal(modality.encode(path).features, modality.encode(path.read_bytes()).features)


def shades(modality: ImageModality, content: bytes) -> torch.Tensor:
    """[height, width] brightness in [-1, 1] of the picture that the tower is given."""
    return unit_range(modality.picture(modality.encode(content))).mean(dim=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_grey_are_brought_to_the_same_range(kind: str, channels: int) -> None:
    deep = Image.fromarray((SHADES * 257).astype(np.uint16))
    assert deep.mode == "I;16"
    modality = ImageModality(patch_size=8, channels=channels)  # type: ignore[arg-type]
    expected = torch.from_numpy(SHADES / 127.5 - 1).float()
    torch.testing.assert_close(shades(modality, saved(deep, kind)), expected, atol=0.005, rtol=0)


def test_sixteen_bits_of_colour_are_read_as_eight() -> None:
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in NOISE.astype(np.uint32) * 257)
    content = png(16, 2, lines, size=(40, 24))
    modality = ImageModality(patch_size=8)
    assert torch.equal(modality.picture(modality.encode(content)), torch.from_numpy(NOISE))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_files_show_their_colours(kind: str) -> None:
    smooth = Image.fromarray(SHADES.astype(np.uint8)).convert("RGB").convert("CMYK")
    content = saved(smooth, kind, **({"quality": 98} if kind == "JPEG" else {}))
    expected = torch.from_numpy(SHADES / 127.5 - 1).float()
    torch.testing.assert_close(shades(ImageModality(patch_size=8), content), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palettes_are_resolved(kind: str) -> None:
    few = Image.fromarray(NOISE).quantize(16)
    modality = ImageModality(patch_size=8)
    found = modality.picture(modality.encode(saved(few, kind)))
    np.testing.assert_array_equal(found, np.asarray(few.convert("RGB")))


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    hole = Image.new("P", (8, 8), 3)
    hole.putpalette([0] * 768)
    content = saved(hole, "PNG", transparency=3)
    assert (shades(ImageModality(patch_size=8), content) == 1).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    assert (shades(ImageModality(), animated(kind, 3)) > 0.98).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_file_that_ends_anywhere_is_refused_or_complete(kind: str) -> None:
    content = saved(Image.fromarray(NOISE), kind)
    modality = ImageModality(patch_size=8)
    whole = modality.encode(content).features
    for end in range(0, len(content), max(1, len(content) // 40)):
        try:
            found = modality.encode(content[:end]).features
        except BadSampleError:
            continue
        assert torch.equal(found, whole)  # what was cut off was behind the pixels


@pytest.mark.parametrize("size", [(40, 24), (400, 240)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_put_back_together_is_the_decoded_one(size: tuple[int, int], channels: int) -> None:
    original = Image.fromarray(NOISE).resize(size)
    modality = ImageModality(patch_size=16, max_tokens=24, channels=channels)  # type: ignore[arg-type]
    segment = modality.encode(saved(original, "PNG"))
    fitted = original
    if size != (40, 24):
        fitted = original.resize((96, 58), Image.Resampling.BICUBIC, reducing_gap=2)
    expected = np.asarray(fitted.convert("RGB" if channels == 3 else "L"), np.float64)
    expected = expected.reshape(fitted.height, fitted.width, channels)
    found = modality.picture(segment).numpy()[: fitted.height, : fitted.width]
    np.testing.assert_allclose(found, expected, atol=0 if channels == 3 else 3)  # grey is resized as grey
    preview = modality.preview(segment)
    assert preview.picture is not None
    assert preview.caption == f"{preview.picture.shape[1]} x {preview.picture.shape[0]} pixels"
