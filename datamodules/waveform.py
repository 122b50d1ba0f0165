"""From a path, bytes or an array to a waveform: one channel of finite samples, never longer than asked.

Notable:
- soundfile (libsndfile) decodes WAV, FLAC, OGG, Opus, MP3, AIFF, AU and CAF block by block and stops at
  `max_seconds`: memory depends on that budget, never on what a header claims.
- torchaudio is deliberately not used: its loader is by now a wrapper around torchcodec and FFmpeg, and
  its binary wheel only loads beside a CUDA build of torch on Linux. Formats that libsndfile does not
  open (M4A, WMA, video) are refused with the FFmpeg command that converts them.
- A file that ends early is refused, as its transcript would no longer fit (see `audio_headers`); one that
  goes on after the samples it declares is read as far as it declares.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from torch import Tensor

from datamodules.audio_headers import COMPLETE, CUT_SHORT, header_problem
from datamodules.media import open_media
from onn_lightning.modality import BadSampleError

Clip = tuple[NDArray[Any] | Tensor, float]
"""(samples [n] or [channels, n], sample rate in Hz); floats of full scale 1 or integers of full range."""

SAMPLE_RATES = (1_000, 768_000)
"""Sample rates taken for real, Hz: below telephone quality to above any studio converter."""

BLOCK_SAMPLES = 1 << 18
"""Samples decoded at a time, all channels together: 1 MiB as float32."""

_STDERR_IS_SHUT = threading.Lock()

CONVERT = "convert it (for example `ffmpeg -i in.m4a out.flac`) or drop it"


class Waveform(NamedTuple):
    """Mono samples.

    Args:
        name: what the clip is called in messages.
        samples: [n] float32, finite, at most one more than the budget holds.
        rate: Hz.
    """

    name: str
    samples: NDArray[np.float32]
    rate: float


def read_waveform(raw: str | Path | bytes | Clip, max_seconds: float) -> Waveform:
    """Decode a clip and average its channels.

    Args:
        raw: path, content of a file, or (samples, sample rate).
        max_seconds: reading stops one sample beyond, so that a longer clip shows.
    Raises:
        BadSampleError: missing, damaged, cut short, not audio, empty or not finite; names the file.
    """
    if isinstance(raw, str | Path | bytes):
        with open_media(raw, "audio") as (name, stream):
            waveform = _decode(stream, name, max_seconds)
    elif isinstance(raw, tuple | list) and len(raw) == 2:
        waveform = _from_array(raw[0], raw[1], max_seconds)
    else:
        raise BadSampleError(
            f"audio given as {type(raw).__name__}: give a path, bytes or a pair (samples, sample rate)"
        )
    if not len(waveform.samples):
        raise BadSampleError(f"{waveform.name} holds no samples (its header may be wrong): {CONVERT}")
    if not (math.isfinite(waveform.samples.max()) and math.isfinite(waveform.samples.min())):  # NaN is both
        raise BadSampleError(f"{waveform.name} holds NaN or infinite samples: replace them or drop it")
    return waveform


class _Source:
    """Bytes in memory as libsndfile should see them.

    Without exceptions from `seek`, since damaged files make it seek before their start, and inside a C
    callback an exception would only be printed.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        self._stream = stream
        self.readinto, self.tell = stream.readinto, stream.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        with suppress(OSError, ValueError):
            self._stream.seek(offset, whence)
        return self._stream.tell()


def _open(stream: BinaryIO) -> soundfile.SoundFile:
    """Never by name: libsndfile takes any text for headerless audio where the suffix says so (.au, .raw)."""
    if isinstance(stream, io.BytesIO):
        stream.seek(0)
        return soundfile.SoundFile(_Source(stream))
    os.lseek(stream.fileno(), 0, os.SEEK_SET)  # what Python has read ahead is not where the descriptor is
    return soundfile.SoundFile(stream.fileno(), closefd=False)


def _decode(stream: BinaryIO, name: str, max_seconds: float) -> Waveform:
    problem = header_problem(stream)
    if problem:
        raise BadSampleError(f"{name} {problem}; fetch it again or drop it")
    with _no_notes_of_mpg123(stream):
        return _decode_blocks(stream, name, max_seconds)


def _decode_blocks(stream: BinaryIO, name: str, max_seconds: float) -> Waveform:
    try:
        sound = _open(stream)
    except soundfile.SoundFileError as error:
        raise BadSampleError(f"{name} is not audio that libsndfile opens: {CONVERT}") from error
    with sound:
        rate = _checked_rate(sound.samplerate, name)
        wanted = int(max_seconds * rate) + 1
        block = max(1, BLOCK_SAMPLES // sound.channels)
        blocks: list[NDArray[np.float32]] = []
        count = 0
        try:
            while count < wanted:
                asked = min(block, wanted - count)
                frames = sound.read(asked, dtype="float32", always_2d=True)
                blocks.append(_mix(frames.T))
                count += len(frames)
                if len(frames) < asked:
                    break
        except soundfile.SoundFileError as error:
            raise BadSampleError(f"{name} is damaged or cut short ({error}): {CONVERT}") from error
        if 0 < count < min(wanted, COMPLETE * sound.frames):
            raise BadSampleError(f"{name} {CUT_SHORT}; fetch it again or drop it")
    return Waveform(name, blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate)


@contextmanager
def _no_notes_of_mpg123(stream: BinaryIO) -> Iterator[None]:
    """Keep from the terminal what the MP3 decoder says of damaged files: it cannot be told to be quiet."""
    stream.seek(0)
    beginning = stream.read(3)
    if beginning != b"ID3" and beginning[:1] != b"\xff":
        yield
        return
    with _STDERR_IS_SHUT:
        stderr = os.dup(2)
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _from_array(samples: Any, sample_rate: Any, max_seconds: float) -> Waveform:
    name = "audio in memory"
    rate = _checked_rate(sample_rate, name)
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    if not isinstance(samples, np.ndarray) or samples.ndim not in (1, 2) or samples.dtype.kind not in "fiu":
        is_array = isinstance(samples, np.ndarray)
        found = f"of shape {samples.shape}, {samples.dtype}" if is_array else f"a {type(samples).__name__}"
        raise BadSampleError(f"{name} is {found}: give an array of numbers, [n] or [channels, n]")
    samples = np.atleast_2d(samples)[:, : int(max_seconds * rate) + 1]  # cut before anything is copied
    if samples.dtype.kind != "f":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = (samples - (half if samples.dtype.kind == "u" else 0.0)) / half
    return Waveform(name, _mix(samples), rate)


def _mix(channels: NDArray[Any]) -> NDArray[np.float32]:
    """[channels, n] -> [n], averaged; NaN and overflow pass through to the check that names them."""
    if not channels.size:
        return np.empty(0, np.float32)
    if len(channels) == 1 and channels.dtype == np.float32:
        return channels[0]
    with np.errstate(all="ignore"):
        return np.asarray(channels.mean(axis=0), dtype=np.float32)


def _checked_rate(rate: Any, name: str) -> float:
    low, high = SAMPLE_RATES
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not low <= rate <= high:
        raise BadSampleError(
            f"{name} has sample rate {rate!r}, expected {low}..{high} Hz: correct it or drop it"
        )
    return float(rate)
