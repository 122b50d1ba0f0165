"""Sounds: the spectrogram against an independent one, any rate and channel count, bad files by name."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from datamodules.audio import AudioModality, mel_filters
from onn_lightning.modality import BadSampleError

RATE = 16_000


def tone(frequency: float = 440.0, seconds: float = 0.5, rate: int = RATE) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def speech_like(seconds: float = 0.5, rate: int = RATE, seed: int = 0) -> NDArray[np.float32]:
    """A gliding harmonic sound with pauses and a little noise."""
    time = np.arange(int(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * k * (120 * time + 40 * time**2)) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).normal(size=len(time))
    return np.asarray(0.1 * voice * (np.sin(9 * time) > -0.3) + 0.003 * noise, np.float32)


def wav_bytes(samples: NDArray[Any], rate: int = RATE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=options.pop("format", "WAV"), **options)
    return buffer.getvalue()


def with_field(content: bytes, after: bytes, offset: int, value: int) -> bytes:
    """WAV bytes with a 32-bit field of its header overwritten."""
    place = content.index(after) + offset
    return content[:place] + struct.pack("<I", value) + content[place + 4 :]


@pytest.mark.parametrize(
    ("n_mels", "n_fft", "rate"), [(64, 512, 16_000), (80, 1024, 22_050), (32, 512, 1_800)]
)
def test_mel_filters_equal_those_of_transformers(n_mels: int, n_fft: int, rate: int) -> None:
    reference = mel_filter_bank(
        n_fft // 2 + 1, n_mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
    )
    np.testing.assert_allclose(mel_filters(n_mels, n_fft, rate).T, reference, rtol=1e-5, atol=1e-8)


def test_the_log_mel_spectrogram_equals_that_of_transformers() -> None:
    modality = AudioModality()
    samples = speech_like()
    reference = spectrogram(
        samples.astype(np.float64),
        window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=True,
        mel_filters=mel_filter_bank(257, 64, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney"),
        mel_floor=1e-30,
    )
    expected = np.log(reference.T)
    expected = np.maximum(expected, expected.max() - np.log(1e8))
    found = modality.log_mel(torch.from_numpy(samples)).double().numpy()
    assert found.shape == expected.shape == (1 + len(samples) // 160, 64)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_patches_are_time_major_with_time_and_frequency_positions() -> None:
    modality = AudioModality(patch_time=4, patch_freq=16)
    samples = speech_like()
    segment = modality.encode((samples, RATE))
    frames = 1 + len(samples) // 160
    steps = -(-frames // 4)
    assert len(segment) == steps * 4
    assert segment.positions_2d is not None
    assert segment.positions_2d[:5].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
    centred = samples - samples.mean()
    log_mel = modality.log_mel(torch.from_numpy(centred / np.abs(centred).max()))
    normal = (log_mel - log_mel.mean()) / (log_mel.var(correction=0) + 1e-3).sqrt()
    token = 2 * 4 + 3  # time 2, frequency 3
    expected = normal[8:12, 48:64].half()  # exact but for the last bit, which 1e-4 may turn
    torch.testing.assert_close(segment.features[token].view(4, 16), expected, atol=1e-4, rtol=2**-10)
    assert abs(float(segment.features.float().std()) - 1) < 0.1


def test_overlapping_patches_repeat_the_shared_frames() -> None:
    plain = AudioModality(patch_time=4, patch_freq=64).encode((speech_like(), RATE))
    overlapping = AudioModality(patch_time=4, patch_freq=64, stride_time=2).encode((speech_like(), RATE))
    assert torch.equal(overlapping.features[0:24:2], plain.features[:12])
    first, second = overlapping.features[0].view(4, 64), overlapping.features[1].view(4, 64)
    assert torch.equal(first[2:], second[:2])
    with pytest.raises(ValueError, match="next_patch_loss needs stride_time=None"):
        AudioModality(stride_time=2, next_patch_loss=True)


def test_targets_are_patches_normalised_by_themselves() -> None:
    segment = AudioModality(next_patch_loss=True).encode((speech_like(), RATE))
    assert segment.targets is not None and segment.targets.dtype == torch.float32
    patch = segment.features[7].double()  # half precision; the targets are of the patch before it was rounded
    spread = (patch.var(correction=0) + 1e-3).sqrt()
    rounding = float(2**-11 * patch.abs().max() / spread)
    torch.testing.assert_close(
        segment.targets[7].double(), (patch - patch.mean()) / spread, atol=2 * rounding, rtol=0
    )
    assert AudioModality().encode((speech_like(), RATE)).targets is None


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(1e-2, 1e30), offset=st.floats(-0.5, 0.5))
def test_gain_and_offset_change_nothing(gain: float, offset: float) -> None:
    samples = speech_like(0.2).astype(np.float64)
    modality = AudioModality()
    changed = modality.encode(((samples + offset) * gain, RATE))
    torch.testing.assert_close(changed.features, modality.encode((samples, RATE)).features, atol=0.05, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([1_000, 8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
    | st.integers(1_000, 100_000),
    channels=st.sampled_from([1, 2, 5, 96]),
    seconds=st.floats(0.03, 0.3),
    overlap=st.booleans(),
)
def test_any_rate_channel_count_and_length_gives_finite_tokens(
    rate: int, channels: int, seconds: float, overlap: bool
) -> None:
    samples = np.tile(tone(200, seconds, rate), (channels, 1))
    modality = AudioModality(stride_time=4 if overlap else None)
    segment = modality.encode((samples, rate))
    frames = 1 + seconds * 100
    expected = 2 * max(1, np.ceil((frames - 8) / (4 if overlap else 8)) + 1)
    assert abs(len(segment) - expected) <= 2
    assert torch.isfinite(segment.features).all()


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 96_000])
def test_a_tone_keeps_its_band_at_any_rate(rate: int) -> None:
    modality = AudioModality(patch_time=1, patch_freq=64)
    spectra = modality.encode((tone(1000, 0.5, rate), rate)).features
    reference = modality.encode((tone(1000, 0.5), RATE)).features
    assert int(spectra[20].argmax()) == int(reference[20].argmax())


@pytest.mark.parametrize(
    "options",
    [
        {"format": "WAV"},
        {"format": "WAV", "subtype": "FLOAT"},
        {"format": "WAV", "subtype": "PCM_24"},
        {"format": "FLAC"},
        {"format": "AIFF"},
        {"format": "OGG"},
        {"format": "MP3"},
    ],
)
def test_every_format_and_channel_count_reads_like_the_array(options: dict[str, Any], tmp_path: Path) -> None:
    samples = speech_like(1.0)
    content = wav_bytes(np.stack([samples, samples], axis=1), **options)
    path = tmp_path / "clip"
    path.write_bytes(content)
    modality = AudioModality()
    found = modality.encode(path)
    assert torch.equal(found.features, modality.encode(content).features)
    assert torch.equal(found.features, modality.encode(str(path)).features)
    reference = modality.encode((np.stack([samples, samples]), RATE))
    difference = (found.features[: len(reference)] - reference.features).abs().mean()
    assert difference < (0.02 if options["format"] in ("WAV", "FLAC", "AIFF") else 0.5)


def test_ninety_six_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "many.wav"
    soundfile.write(path, np.tile(speech_like()[:, None], (1, 96)), RATE, subtype="FLOAT")
    modality = AudioModality()
    expected = modality.encode((speech_like(), RATE)).features
    torch.testing.assert_close(modality.encode(path).features, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "dtype", [np.int16, np.int32, np.uint8, np.float16, np.float64, torch.float32, torch.bfloat16]
)
def test_every_number_type_of_samples_reads_alike(dtype: Any) -> None:
    samples = speech_like()
    if isinstance(dtype, torch.dtype):
        clip: Any = torch.from_numpy(samples).to(dtype)
    elif np.issubdtype(dtype, np.floating):
        clip = samples.astype(dtype)
    else:
        info = np.iinfo(dtype)
        middle = (int(info.max) + int(info.min) + 1) // 2
        clip = np.round(samples.astype(np.float64) * info.max / (2 if middle else 1) + middle).astype(dtype)
    modality = AudioModality()
    found, expected = modality.encode((clip, RATE)).features, modality.encode((samples, RATE)).features
    loud = expected > 0.5  # coarse types lose what is quiet
    assert (found - expected)[loud].abs().mean() < 0.05


def test_a_long_clip_is_refused_or_its_beginning_kept() -> None:
    samples = speech_like(3.0)
    with pytest.raises(BadSampleError, match="longer than max_seconds=2"):
        AudioModality(max_seconds=2).encode((samples, RATE))
    kept = AudioModality(max_seconds=2, cut_long=True).encode((samples, RATE))
    expected = AudioModality(max_seconds=2).encode((samples[: 2 * RATE], RATE))
    assert torch.equal(kept.features, expected.features)


def test_memory_stays_flat_however_long_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 48_000, 8, subtype="PCM_16") as file:
        block = np.tile(tone(300, 1.0, 48_000)[:, None], (1, 8))
        for _ in range(60):
            file.write(block)
    modality = AudioModality(max_seconds=2, cut_long=True)
    tracemalloc.start()
    modality.encode(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6  # the file decodes to 92 MB


def test_streamed_wav_files_without_a_length_are_read_to_their_end() -> None:
    whole = wav_bytes(speech_like())
    modality = AudioModality()
    for size in (0xFFFF_FFFF, 0x7FFF_FFFF):
        streamed = with_field(with_field(whole, b"data", 4, size), b"RIFF", 4, size)
        assert torch.equal(modality.encode(streamed).features, modality.encode(whole).features)


def bad_clips() -> dict[str, tuple[bytes, str]]:
    """name -> (content, word its message must hold)."""
    good = wav_bytes(speech_like())
    broken = speech_like()
    broken[4000] = np.nan
    endless = speech_like()
    endless[100] = np.inf
    flac, mp3 = wav_bytes(speech_like(2.0), format="FLAC"), wav_bytes(speech_like(2.0), format="MP3")
    return {
        "empty": (b"", "0 bytes"),
        "text": (b"hello, this is text\n" * 99, "not audio"),
        "m4a": (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(500), "ffmpeg"),
        "no samples": (wav_bytes(np.zeros(0, np.float32)), "no samples"),
        "data size 0": (with_field(good, b"data", 4, 0), "no samples"),
        "claims more": (with_field(good, b"data", 4, 1_000_000_000), "cut short"),
        "cut wav": (good[: len(good) // 2], "cut short"),
        "cut flac": (flac[: len(flac) // 2], "cut short"),
        "cut mp3": (mp3[: len(mp3) // 2], "cut short"),
        "rate 0": (with_field(good, b"fmt ", 12, 0), "not audio"),
        "rate 1": (with_field(good, b"fmt ", 12, 1), "sample rate 1,"),
        "rate absurd": (with_field(good, b"fmt ", 12, 2_000_000_000), ""),
        "one sample": (wav_bytes(np.ones(1, np.float32)), "1 samples"),
        "silent": (wav_bytes(np.zeros(RATE, np.float32)), "silent"),
        "constant": (wav_bytes(np.full(RATE, 0.5, np.float32)), "silent"),
        "nan": (wav_bytes(broken, subtype="FLOAT"), "NaN"),
        "infinite": (wav_bytes(endless, subtype="FLOAT"), "NaN or infinite"),
    }


@pytest.mark.parametrize("what", bad_clips())
def test_bad_files_are_refused_by_name_with_a_remedy_and_no_warning(what: str, tmp_path: Path) -> None:
    content, word = bad_clips()[what]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(BadSampleError) as caught:
        warnings.simplefilter("error")
        AudioModality().encode(path)
    message = str(caught.value)
    assert str(path) in message
    assert word in message
    assert "drop" in message


def test_missing_special_and_headerless_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match="does not exist"):
        AudioModality().encode(tmp_path / "missing.wav")
    with pytest.raises(BadSampleError, match="name a regular file"):
        AudioModality().encode(tmp_path)
    for suffix in ("raw", "au", "vox"):  # libsndfile itself would take these for headerless audio
        (tmp_path / f"text.{suffix}").write_text("no header, no audio\n" * 200)
        with pytest.raises(BadSampleError, match="not audio"):
            AudioModality().encode(tmp_path / f"text.{suffix}")


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (None, "NoneType"),
        (tone(), "ndarray"),
        ((tone(), 0), "sample rate 0"),
        ((tone(), float("nan")), "sample rate nan"),
        ((tone(), "16000"), "sample rate '16000'"),
        ((tone(), True), "sample rate True"),
        (([0.1, 0.2], RATE), "a list"),
        ((tone().reshape(-1, 1), RATE), "1 samples"),
        ((tone()[None, None], RATE), "shape"),
        ((tone() > 0, RATE), "bool"),
        ((tone().astype(np.complex64), RATE), "complex64"),
        ((np.zeros(0), RATE), "no samples"),
        ((np.zeros((0, 500)), RATE), "no samples"),
        ((np.stack([tone(), -tone()]), RATE), "all channels averaged"),
        ((np.full(RATE, np.nan), RATE), "NaN"),
        ((np.array([1e300, -1e300] * 4000), RATE), "infinite"),
    ],
)
def test_arrays_that_are_no_clip_are_refused(raw: Any, word: str) -> None:
    with warnings.catch_warnings(), pytest.raises(BadSampleError, match=word):
        warnings.simplefilter("error")
        AudioModality().encode(raw)


def test_silence_is_encoded_as_zeros_where_it_is_allowed() -> None:
    segment = AudioModality(allow_silence=True).encode((np.zeros(RATE), RATE))
    assert torch.equal(segment.features, torch.zeros_like(segment.features))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_tokens_or_a_bad_sample_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(WHOLE_FILES)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content) - 1, 300)))] = data.draw(st.integers(0, 255))
    try:
        segment = AudioModality(max_seconds=1).encode(bytes(content))
    except BadSampleError:
        return
    assert torch.isfinite(segment.features).all()


WHOLE_FILES = [wav_bytes(speech_like(0.1), format=kind) for kind in ("WAV", "FLAC", "OGG", "AIFF")]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"sample_rate": 0}, "sample_rate"),
        ({"n_mels": 60}, "patch_freq"),
        ({"patch_time": 0}, "patch_time"),
        ({"patch_freq": 0}, "patch_freq"),
        ({"stride_time": 9}, "stride_time"),
        ({"stride_time": 0}, "stride_time"),
        ({"hop_ms": 50.0}, "hop"),
        ({"hop_ms": 0.0}, "hop"),
        ({"max_seconds": 0.0}, "max_seconds"),
        ({"max_seconds": float("nan")}, "max_seconds"),
        ({"max_seconds": float("inf")}, "max_seconds"),
        ({"n_mels": 512, "patch_freq": 32}, "n_mels=512"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        AudioModality(**arguments)


def test_a_copy_in_a_loader_worker_encodes_alike() -> None:
    modality = AudioModality(patch_time=4)
    copy = pickle.loads(pickle.dumps(modality))
    clip = (speech_like(), RATE)
    assert torch.equal(copy.encode(clip).features, modality.encode(clip).features)
    assert copy.init_args == modality.init_args


def test_the_embedder_and_the_head_take_what_encode_gives() -> None:
    modality = AudioModality(next_patch_loss=True)
    segment = modality.encode((speech_like(), RATE))
    embedded = modality.build_embedder(32)(segment.features, segment.positions_2d)
    assert embedded.shape == (len(segment), 32)
    assert 0.5 < embedded.std() < 2
    head = modality.build_head(32)
    assert head is not None and AudioModality().build_head(32) is None
    output = head(embedded, segment.targets)
    assert getattr(output, "loss", output).shape == (len(segment),)
