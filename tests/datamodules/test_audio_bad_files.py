"""Sounds that are not what they say: lying headers, bombs, damage, and nothing on the terminal."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from encode_in_child import Outcome, encode_all
from numpy.typing import NDArray

from datamodules.audio import AudioModality
from datamodules.audio_headers import header_problem
from onn_lightning.modality import BadSampleError

RATE = 16_000
TONE: NDArray[np.float32] = (0.5 * np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE)).astype(np.float32)


def written(samples: NDArray[Any], kind: str = "WAV", rate: int = RATE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


def patched(content: bytes, after: bytes, offset: int, layout: str, *values: int) -> bytes:
    """The content with a field overwritten, `offset` bytes after the beginning of a mark."""
    place = content.index(after) + offset
    field = struct.pack(layout, *values)
    return content[:place] + field + content[place + len(field) :]


def flac_that_declares(samples: int) -> bytes:
    content = bytearray(written(TONE, "FLAC"))
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = struct.pack(">I", samples & 0xFFFF_FFFF)
    return bytes(content)


def au(declared: int) -> bytes:
    header = struct.pack(">4sIIIII", b".snd", 24, declared, 3, RATE, 1)
    return header + (TONE * 30_000).astype(">i2").tobytes()


WAV, AIFF, RF64 = written(TONE), written(TONE, "AIFF"), written(TONE, "RF64")
LIES: dict[str, tuple[bytes, str]] = {
    "more samples": (patched(WAV, b"data", 4, "<I", 10**6), "cut short"),
    "no samples": (patched(WAV, b"data", 4, "<I", 0), "no samples"),
    "fifty samples": (patched(WAV, b"data", 4, "<I", 100), "50 samples"),
    "rate 0": (patched(WAV, b"fmt ", 12, "<I", 0), "not audio"),
    "rate 1": (patched(WAV, b"fmt ", 12, "<I", 1), "sample rate 1,"),
    "rate of gigahertz": (patched(WAV, b"fmt ", 12, "<I", 2_000_000_000), "sample rate 2000000000"),
    "no channels": (patched(WAV, b"fmt ", 10, "<H", 0), "contradicts itself: 0 channels"),
    "two channels": (patched(WAV, b"fmt ", 10, "<H", 2), "contradicts itself: 2 channels"),
    "96 channels": (patched(WAV, b"fmt ", 10, "<H", 96), "contradicts itself: 96 channels"),
    "65535 channels": (patched(WAV, b"fmt ", 10, "<H", 65_535), "contradicts itself"),
    "96 channels in full": (patched(WAV, b"fmt ", 10, "<HIIH", 96, RATE, RATE * 192, 192), "166 samples"),
    "7 bits": (patched(WAV, b"fmt ", 22, "<H", 7), "contradicts itself: 1 channels of 7 bits"),
    "no format": (patched(WAV, b"fmt ", 4, "<I", 0), "not audio"),
    "endless format": (patched(WAV, b"fmt ", 4, "<I", 2**31), "not audio"),
    "cut aiff": (AIFF[: len(AIFF) // 2], "cut short"),
    "cut rf64": (RF64[: len(RF64) // 2], "cut short"),
    "cut au": (au(2 * RATE)[:16_000], "cut short"),
    "cut w64": (written(TONE, "W64")[:16_000], "cut short"),
    "cut caf": (written(TONE, "CAF")[:16_000], ""),
    "cut ogg header": (written(TONE, "OGG")[:100], "not audio"),
    "endless au": (au(10**9), "cut short"),
    "endless rf64": (patched(RF64, b"ds64", 8, "<QQQ", 10**12, 10**12, 10**11), "cut short"),
    "endless caf": (patched(written(TONE, "CAF"), b"data", 4, ">q", 10**12), ""),
    "flac of more samples": (flac_that_declares(20_000), "cut short"),
    "endless flac": (flac_that_declares(2**36 - 1), "cut short"),
    "flac of one sample": (flac_that_declares(1), "1 samples"),
    "no samples in an aiff": (written(TONE[:0], "AIFF"), "no samples"),
    "no samples in a flac": (written(TONE[:0], "FLAC"), ""),
    "no samples in an ogg": (written(TONE[:0], "OGG"), ""),
    "nan": (written(np.where(TONE > 0.4, np.nan, TONE), subtype="FLOAT"), "NaN"),
    "nan in a double": (written(np.where(TONE > 0.4, np.nan, TONE), subtype="DOUBLE"), "NaN"),
    "nan in one of two": (
        written(np.stack([TONE, np.full_like(TONE, np.nan)], axis=1), subtype="FLOAT"),
        "NaN",
    ),
    "infinite": (written(np.where(TONE > 0.4, -np.inf, TONE), subtype="FLOAT"), "infinite"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(2000), "not audio"),
    "text": (b"RIFF is a word, WAVE another\n" * 99, "not audio"),
    "pickle": (b"\x80\x04c__builtin__\neval\n." + bytes(200), "not audio"),
}
"""name -> (content, word of its refusal)."""


@pytest.mark.parametrize("what", LIES)
def test_a_lie_is_refused_by_name_with_a_remedy(what: str, tmp_path: Path) -> None:
    content, word = LIES[what]
    path = tmp_path / "lying.wav"
    path.write_bytes(content)
    for raw in (path, content):  # through the file's descriptor and out of memory
        with pytest.raises(BadSampleError) as caught:
            AudioModality().encode(raw)
        assert word in str(caught.value)
        assert "drop" in str(caught.value)
    with pytest.raises(BadSampleError, match=r"lying\.wav"):
        AudioModality().encode(path)


@pytest.mark.parametrize(
    ("content", "reference"),
    [
        *((patched(WAV, b"RIFF", 4, "<I", size), WAV) for size in (0, 1, 10**6, 2**31, 2**32 - 1)),
        *((patched(WAV, b"data", 4, "<I", size), WAV) for size in (0x7FFF_FFFF, 0xFFFF_FFFF)),
        *((patched(WAV, b"fmt ", 16, "<I", rate), WAV) for rate in (0, 1, 2**32 - 1)),
        *((patched(AIFF, b"COMM", 10, ">I", frames), AIFF) for frames in (0, 1, 2**31)),
        (au(0xFFFF_FFFF), au(2 * RATE)),
        (WAV + b"LIST" + struct.pack("<I", 2**31) + bytes(50), WAV),
    ],
)
def test_what_does_not_matter_may_be_wrong(content: bytes, reference: bytes) -> None:
    modality = AudioModality()
    assert torch.equal(modality.encode(content).features, modality.encode(reference).features)


@pytest.mark.parametrize(
    "content", [patched(WAV, b"data", 4, "<I", RATE), flac_that_declares(RATE // 2)], ids=["wav", "flac"]
)
def test_a_file_is_read_no_further_than_it_declares(content: bytes) -> None:
    modality = AudioModality()
    expected = modality.encode(written(TONE[: RATE // 2])).features
    torch.testing.assert_close(modality.encode(content).features, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("bits", [20, 24])
def test_samples_of_less_than_32_bits_may_stand_in_four_bytes(bits: int) -> None:
    assert header_problem(io.BytesIO(patched(WAV, b"fmt ", 20, "<HH", 4, bits))) is None
    assert header_problem(io.BytesIO(patched(WAV, b"fmt ", 20, "<HH", 5, bits))) is not None


def silence_of_hours() -> bytes:
    """Half a megabyte that decodes to 460."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, format="FLAC") as file:
        for _ in range(120):
            file.write(np.zeros(RATE * 60, np.float32))
    return buffer.getvalue()


def tone_after(seconds: int) -> bytes:
    """A WAV that goes on far longer than is read."""
    return written(np.tile(TONE, seconds))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "hours.flac": (silence_of_hours, "silent"),
    "minutes.wav": (lambda: tone_after(600), ""),
    "channels.wav": (lambda: written(np.tile(TONE[:8000, None], (1, 1024)), rate=192_000), ""),
    "cut.mp3": (lambda: (mp3 := written(np.tile(TONE, 4), "MP3"))[: len(mp3) // 2], "cut short"),
    "damaged.mp3": (lambda: (mp3 := written(TONE, "MP3"))[:500] + bytes(300) + mp3[800:], ""),
    "tags.mp3": (lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + written(TONE, "MP3"), "not audio"),
    "damaged.ogg": (lambda: (ogg := written(TONE, "OGG"))[:3900] + bytes(60) + ogg[3960:], ""),
    "damaged.flac": (lambda: (flac := written(TONE, "FLAC"))[:3000] + bytes(60) + flac[3060:], ""),
    "endless.flac": (lambda: flac_that_declares(2**36 - 1), "cut short"),
    "pages.ogg": (lambda: written(TONE, "OGG")[:58] * 20_000, "not audio"),
    "chunks.wav": (lambda: WAV[:12] + b"junk\0\0\0\0" * 200_000 + WAV[12:], ""),
}
"""name -> (what makes the content, word of its refusal; "": it is taken, or refused)."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("bad")
    for name, (make, _) in BOMBS.items():
        (folder / name).write_bytes(make())
    return encode_all("audio", folder, timeout=120)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_memory_and_time_and_prints_nothing(
    outcomes: dict[str, Outcome], name: str
) -> None:
    outcome = outcomes[name]  # that the child's stderr was empty is asserted where it ends
    assert outcome.mebibytes < 40
    assert outcome.seconds < 5  # milliseconds on an idle machine
    word = BOMBS[name][1]
    assert word in outcome.message
    assert bool(outcome.tokens) != bool(outcome.message)
    assert not word or not outcome.tokens


def test_ninety_six_channels_are_read_block_by_block(tmp_path: Path) -> None:
    content = written(np.tile(TONE[:, None], (1, 96)))
    found, expected = AudioModality().encode(content), AudioModality().encode(written(TONE))
    torch.testing.assert_close(found.features, expected.features, atol=0.05, rtol=0)


@pytest.mark.parametrize("stride", [None, 3])
def test_the_spectrogram_put_back_together_is_the_one_that_was_cut(stride: int | None) -> None:
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    modality = AudioModality(patch_time=8, patch_freq=16, stride_time=stride)
    centred = torch.from_numpy(noise - noise.mean())
    log_mel = modality.log_mel(centred / centred.abs().max()).double()
    expected = (log_mel - log_mel.mean()) / (log_mel.var(correction=0) + 1e-3).sqrt()
    segment = modality.encode((noise, RATE))
    found = modality.spectrogram(segment)
    torch.testing.assert_close(found[: len(expected)].double(), expected, atol=2e-4, rtol=2**-11)  # half
    assert (found[len(expected) :] == found.min()).all()  # completed with the quietest value


def test_the_preview_has_time_to_the_right_and_low_frequencies_at_the_bottom() -> None:
    time = np.arange(RATE) / RATE
    sweep = np.sin(2 * np.pi * (200 * time + 3000 * time**2))  # 200 Hz to 6.2 kHz
    modality = AudioModality()
    preview = modality.preview(modality.encode((sweep, RATE)))
    assert preview.picture is not None and preview.picture.dtype == torch.uint8
    loudest = preview.picture.sum(dim=2).argmax(dim=0)  # row of each frame, from the top
    assert preview.picture.shape == (64, 104, 3)
    assert loudest[5] > 50 and loudest[50] < loudest[5] and loudest[95] < 15
    assert preview.caption == "1.04 s, to 8 kHz"
