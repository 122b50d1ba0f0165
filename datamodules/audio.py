"""Sound as patches of its log-mel spectrogram, over (time, frequency).

Notable:
- `waveform.py` decodes any format and channel count within the budget; soxr resamples.
- The features do not depend on gain: samples are centred and divided by their peak, the spectrogram is
  floored 80 dB below its loudest cell, then brought to zero mean and unit variance over the clip.
- Features travel in half precision, a 2,048th of their size: half of what loader workers have to keep, send
  and pin. The embedder computes in its own precision.
- Tokens are time-major, low frequencies first within a step; positions are (time, frequency) in
  patches. The last patches are completed with the clip's quietest value.
- A clip longer than `max_seconds` is refused by default: cutting it silently would teach the model
  transcripts of what it never heard. `cut_long` keeps the beginning, for sound without a transcript.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodules.patches import FLAT_VARIANCE, normalize_patches, row_major_positions
from datamodules.waveform import SAMPLE_RATES, Clip, Waveform, read_waveform
from onn_lightning.batch import Segment
from onn_lightning.modality import BadSampleError, Modality, Preview

SILENCE_PEAK = 1e-4
"""Full scale is 1: three steps of 16 bits (-80 dB), the dither of an empty recording."""

DYNAMIC_RANGE = math.log(1e8)
"""80 dB as natural logarithm of power: what lies further below the loudest cell is floored."""

FRAMES_AT_ONCE = 512
"""Frames that are transformed together: their spectra stay in the cache, and memory stays flat."""

BANDS_AT_ONCE = 16
"""Mel bands that are summed together: most frequencies have no part in any of a few neighbours."""

COLOURS = ((0, 0, 8), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191))
"""Of a spectrogram from its quietest to its loudest cell."""

TINY = np.finfo(np.float32).tiny


class AudioModality(Modality):
    """Sounds cut into patches of a log-mel spectrogram.

    Args:
        sample_rate: Hz, to which every clip is resampled.
        n_mels: mel bands, a multiple of `patch_freq`.
        window_ms, hop_ms: length and distance of the analysis windows, milliseconds.
        patch_time: frames in a patch.
        patch_freq: mel bands in a patch.
        stride_time: frames between patches; below `patch_time` they overlap; None: `patch_time`.
        max_seconds: the longest clip. One second is 1000 / hop_ms / stride_time * n_mels / patch_freq
            tokens (25 with the defaults).
        cut_long: keep the first `max_seconds` of a longer clip instead of refusing it.
        allow_silence: encode silent clips (all features zero) instead of refusing them.
        next_patch_loss: predict each patch, normalised by itself, from the token before it.
    Raises:
        ValueError: if the numbers do not fit together; the message says which.
    """

    name = "audio"

    def __init__(
        self,
        sample_rate: int = 16_000,
        n_mels: int = 64,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        patch_time: int = 8,
        patch_freq: int = 32,
        stride_time: int | None = None,
        max_seconds: float = 30.0,
        cut_long: bool = False,
        allow_silence: bool = False,
        next_patch_loss: bool = False,
    ) -> None:
        self.sample_rate = sample_rate
        self.patch_time = patch_time
        self.patch_freq = patch_freq
        self.stride_time = patch_time if stride_time is None else stride_time
        self.max_seconds = max_seconds
        self.cut_long = cut_long
        self.allow_silence = allow_silence
        self.next_patch_loss = next_patch_loss
        self.window_length = round(sample_rate * window_ms / 1000)  # samples
        self.hop_length = round(sample_rate * hop_ms / 1000)  # samples
        self._check_arguments(n_mels)
        self.n_fft = 1 << (self.window_length - 1).bit_length()
        self.n_mels = n_mels
        # zeros behind the window: a transform of n_fft samples needs no padding of its own
        self.window = torch.zeros(self.n_fft)
        self.window[: self.window_length] = torch.hann_window(self.window_length)
        filters = mel_filters(n_mels, self.n_fft, sample_rate)
        empty = int((filters.amax(dim=1) == 0).sum())
        if empty:
            raise ValueError(
                f"AudioModality: {empty} of n_mels={n_mels} bands fall between the frequencies that "
                f"window_ms={window_ms} resolves: lower n_mels or lengthen the window"
            )
        self.filters = filter_banks(filters)

    def _check_arguments(self, n_mels: int) -> None:
        low, high = SAMPLE_RATES
        problem = None
        if not low <= self.sample_rate <= high:
            problem = f"sample_rate={self.sample_rate} lies outside {low}..{high} Hz"
        elif not 1 <= self.hop_length <= self.window_length or self.window_length < 2:
            problem = "window_ms and hop_ms must be at least a sample, the hop no longer than the window"
        elif self.patch_time < 1 or self.patch_freq < 1:
            problem = f"patch_time={self.patch_time} and patch_freq={self.patch_freq} must be at least 1"
        elif n_mels < 1 or n_mels % self.patch_freq:
            problem = f"n_mels={n_mels} must be a positive multiple of patch_freq={self.patch_freq}"
        elif not 1 <= self.stride_time <= self.patch_time:
            problem = f"stride_time={self.stride_time} must lie in 1..patch_time={self.patch_time}"
        elif self.next_patch_loss and self.stride_time < self.patch_time:
            problem = "next_patch_loss needs stride_time=None: a patch must not show part of the next"
        elif not self.window_length <= self.max_seconds * self.sample_rate < math.inf:
            problem = f"max_seconds={self.max_seconds} must be finite and at least one window long"
        if problem:
            raise ValueError(f"AudioModality: {problem}")

    def encode(self, raw: str | Path | bytes | Clip) -> Segment:
        """Turn a clip into patches.

        Args:
            raw: path, content of a file, or (samples, sample rate): [n] or [channels, n], floats of
                full scale 1 or integers of full range.
        Returns:
            n tokens: features [n, patch_time * patch_freq] float16, positions_2d [n, 2] (time,
            frequency) in patches, targets [n, patch_time * patch_freq] float32 with `next_patch_loss`.
        Raises:
            BadSampleError: missing, damaged, not audio, silent, not finite, too short or too long;
                names the file.
        """
        waveform = read_waveform(raw, self.max_seconds)
        return self._patchify(self.log_mel(self._standard_samples(waveform)).numpy())

    def build_embedder(self, hidden_size: int) -> nn.Module:
        """Linear projection rotated by (time, frequency)."""
        from onn_lightning.nn import PatchEmbedder

        return PatchEmbedder(self.patch_time * self.patch_freq, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module | None:
        """Regression of the next patch, or None without `next_patch_loss`."""
        from onn_lightning.nn import PatchRegressionHead

        patch_dim = self.patch_time * self.patch_freq
        return PatchRegressionHead(hidden_size, patch_dim) if self.next_patch_loss else None

    def placeholder(self) -> Segment:
        """One patch in time, of a click."""
        click = np.zeros(self.window_length, np.float32)
        click[0] = 1
        return self.encode((click, self.sample_rate))

    def spectrogram(self, segment: Segment) -> Tensor:
        """The patches put back together: [frames, n_mels], normalised; NaN where there is no patch."""
        assert segment.positions_2d is not None
        steps, bands = segment.positions_2d.unbind(dim=1)
        first = (steps - steps.min()) * self.stride_time  # frame at which each patch begins
        frames = first[:, None] + torch.arange(self.patch_time)  # [n, patch_time]
        mels = bands[:, None] * self.patch_freq + torch.arange(self.patch_freq)  # [n, patch_freq]
        canvas = torch.full((int(frames.max()) + 1, self.n_mels), math.nan)
        canvas[frames[:, :, None], mels[:, None, :]] = segment.features.float().view(
            -1, self.patch_time, self.patch_freq
        )
        return canvas

    def preview(self, segment: Segment) -> Preview:
        """The spectrogram: time to the right, low frequencies at the bottom, loud is bright."""
        values = self.spectrogram(segment).T.flip(0)  # [n_mels, frames]
        seconds = values.shape[1] * self.hop_length / self.sample_rate
        caption = f"{seconds:.2f} s, to {self.sample_rate / 2000:g} kHz"
        return Preview(picture=coloured(values.numpy()), caption=caption)

    def log_mel(self, samples: Tensor) -> Tensor:
        """Natural logarithm of mel power, floored 80 dB below the loudest cell.

        Args:
            samples: [n] float32 at `sample_rate`, at least one window long.
        Returns:
            [1 + n // hop_length, n_mels]; frame i is centred on sample i * hop_length.
        """
        frames = 1 + len(samples) // self.hop_length
        windows = self._padded(samples).unfold(0, self.n_fft, self.hop_length)  # [>= frames, n_fft]
        power = torch.empty(frames, self.n_mels)
        for start in range(0, frames, FRAMES_AT_ONCE):
            rows = slice(start, min(start + FRAMES_AT_ONCE, frames))
            spectrum = torch.fft.rfft(windows[rows] * self.window)
            squares = torch.view_as_real(spectrum).square_().flatten(1)  # real and imaginary parts in turn
            for bank in self.filters:
                torch.mm(squares[:, bank.inputs], bank.weights, out=power[rows, bank.bands])
        logarithm = power.clamp_min_(torch.finfo(power.dtype).tiny).log_()
        return logarithm.clamp_min_(logarithm.max() - DYNAMIC_RANGE)

    def _padded(self, samples: Tensor) -> Tensor:
        """Reflected by half a window at both ends, so that frame 0 is centred on sample 0; zeros behind."""
        before = self.window_length // 2
        behind = self.window_length - before
        end = before + len(samples)
        padded = torch.zeros(end + behind + self.n_fft)
        padded[before:end] = samples
        padded[:before] = samples[1 : before + 1].flip(0)
        padded[end : end + behind] = samples[-behind - 1 : -1].flip(0)
        return padded

    def _standard_samples(self, waveform: Waveform) -> Tensor:
        """Check and cut the length, resample, centre and bring to peak 1."""
        name, samples, rate = waveform
        limit = int(self.max_seconds * rate)
        if len(samples) > limit and not self.cut_long:
            raise BadSampleError(
                f"{name} is longer than max_seconds={self.max_seconds:g}: split it, raise max_seconds, "
                "or set cut_long to keep the beginning"
            )
        samples = samples[:limit]
        if len(samples) * self.sample_rate < self.window_length * rate:
            raise BadSampleError(
                f"{name} has {len(samples)} samples at {rate:g} Hz, fewer than one analysis window "
                f"({self.window_length / self.sample_rate:g} s): drop it (an array is [n] or [channels, n])"
            )
        scale = max(samples.max(), -samples.min(), TINY)  # first of all, so that no later sum overflows
        samples = samples / scale
        samples -= samples.mean()
        peak = max(samples.max(), -samples.min())
        if peak * scale < SILENCE_PEAK and not self.allow_silence:
            raise BadSampleError(
                f"{name} is silent (peak {peak * scale:.1g} of full scale 1, all channels averaged): "
                "drop it or set allow_silence"
            )
        if rate != self.sample_rate:
            samples = soxr.resample(samples, rate, self.sample_rate)
        samples /= max(peak, TINY)
        missing = self.window_length - len(samples)
        if missing > 0:  # resampling rounds lengths down; a clip of exactly one window must stay one
            samples = np.pad(samples, (0, missing))
        return torch.from_numpy(samples)

    def _patchify(self, log_mel: NDArray[np.float32]) -> Segment:
        """[frames, n_mels], overwritten -> tokens."""
        log_mel -= log_mel.mean()
        variance = np.vdot(log_mel, log_mel) / log_mel.size
        log_mel *= np.float32(1 / math.sqrt(variance + FLAT_VARIANCE))
        steps = max(0, -(-(len(log_mel) - self.patch_time) // self.stride_time)) + 1
        missing = (steps - 1) * self.stride_time + self.patch_time - len(log_mel)
        if missing:
            quiet = np.full((missing, log_mel.shape[1]), log_mel.min())
            log_mel = np.concatenate((log_mel, quiet))
        bands = self.n_mels // self.patch_freq
        frame, cell = log_mel.strides
        cells = as_strided(  # every patch where it lies; overlapping ones share frames
            log_mel,
            (steps, bands, self.patch_time, self.patch_freq),
            (self.stride_time * frame, self.patch_freq * cell, frame, cell),
        )
        patches = torch.from_numpy(cells.copy()).view(steps * bands, -1)  # [n, patch_time * patch_freq]
        return Segment(
            modality=self.name,
            features=patches.half(),
            positions_2d=row_major_positions(steps, bands).flip(1),
            targets=normalize_patches(patches).values if self.next_patch_loss else None,
        )


class FilterBank(NamedTuple):
    """Some neighbouring mel bands.

    Args:
        bands: which.
        inputs: what they are summed from, of the squared real and imaginary parts in turn.
        weights: [inputs, bands].
    """

    bands: slice
    inputs: slice
    weights: Tensor


def filter_banks(filters: Tensor) -> list[FilterBank]:
    """Cut filters [n_mels, bins] into banks without most of their zeros."""
    banks = []
    for start in range(0, len(filters), BANDS_AT_ONCE):
        some = filters[start : start + BANDS_AT_ONCE].T.repeat_interleave(2, dim=0)  # re^2 and im^2 alike
        used = torch.nonzero(some.sum(dim=1)).flatten()
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        banks.append(FilterBank(slice(start, start + some.shape[1]), inputs, some[inputs].contiguous()))
    return banks


def coloured(values: NDArray[np.float32]) -> Tensor:
    """Quiet to loud as black, purple, orange, light yellow: [height, width, 3] uint8; NaN is grey."""
    low, high = np.nanmin(values), np.nanmax(values)
    scaled = (values - low) / max(high - low, TINY)
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(scaled, stops, [colour[channel] for colour in COLOURS]) for channel in range(3)]
    picture = np.where(np.isnan(values)[:, :, None], 128, np.stack(channels, axis=2))
    return torch.from_numpy(picture.astype(np.uint8))


def mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangular filters, evenly spaced in mel from 0 Hz to half the sample rate, of equal area.

    Returns:
        [n_mels, n_fft // 2 + 1] float32.
    Source: Slaney, "Auditory Toolbox" (1998): linear below 1 kHz (3 mel per 200 Hz), logarithmic
        above (27 mel per factor of 6.4).
    """
    knee, step = 15.0, math.log(6.4) / 27  # mel at 1 kHz; logarithmic step of a mel above it
    nyquist = sample_rate / 2
    top = knee + math.log(nyquist / 1000) / step if nyquist > 1000 else nyquist * 3 / 200
    mels = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
    corners = torch.where(mels < knee, mels * 200 / 3, 1000 * torch.exp((mels - knee) * step))  # Hz
    bins = torch.linspace(0, nyquist, n_fft // 2 + 1, dtype=torch.float64)  # Hz
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp_min(0)
    return (triangles * 2 / (high - low)).float()
