"""Images and clips a second through our whole path, against bare Pillow and bare soundfile + mel.

The bare peer is what a user would write by hand: `Image.open`, `convert`, `resize` to the same size with
the same filter; `soundfile.read`, `soxr.resample`, `torch.stft` and a mel product. It ships nothing
anywhere: in workers it only counts, while ours packs rows and sends batches to the main process.

Both run in turn (A B A B ...) in this one process, or in the same number of loader workers, and the
median of the pairwise ratios is reported, so that a machine whose speed drifts does not decide.

    python benchmarks/data_media.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from datamodules import AudioModality, ImageModality, JsonLines, OmniDataModule
from datamodules.audio import mel_filters
from datamodules.image import fit_into_budget
from onn_lightning.batch import Batch
from onn_lightning.cli.allocator import keep_freed_memory
from onn_lightning.modality import Modality

PATCH_SIZE, MAX_TOKENS = 16, 256
RATE, N_MELS, N_FFT, WINDOW, HOP = 16_000, 64, 512, 400, 160
IMAGE_KINDS = {"jpeg_640x480": (640, 480), "png_512x512": (512, 512), "jpeg_2048x1536": (2048, 1536)}
AUDIO_KINDS = {"wav_16k": 16_000, "flac_16k": 16_000, "wav_44k": 44_100, "flac_44k": 44_100}
BARE_AT_ONCE = 8
WARM_UP_ITEMS = 24  # of a loader: beyond what its workers had ready


@dataclass(frozen=True)
class Comparison:
    """Our path beside the bare one.

    Args:
        ours_per_second, bare_per_second: median rates, items a second.
        ratio: median of the pairwise ratios ours / bare.
    """

    ours_per_second: float
    bare_per_second: float
    ratio: float


def natural_image(width: int, height: int, seed: int) -> Image.Image:
    """Noise with the spectrum of photographs (amplitude 1 / frequency), colours correlated, with edges.

    A quality-85 JPEG of it has about the bits a pixel of a photograph's.
    """
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(width, height)) ** -1.2
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * random.random(amplitude.shape))
        plane = np.fft.irfft2(amplitude * phase, s=(height, width))
        planes.append(plane / plane.std())
    light, red, blue = planes
    objects = np.where(np.roll(light, width // 3, axis=1) > 0.7, 1.0, -0.3)  # borders of things
    shade = 0.8 * light + objects
    pixels = np.stack([shade + 0.3 * red, shade, shade + 0.3 * blue], axis=2) * 45 + 115
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_images(folder: Path, count: int) -> dict[str, list[Path]]:
    """`count` images of each of `IMAGE_KINDS`."""
    files: dict[str, list[Path]] = {}
    for kind, size in IMAGE_KINDS.items():
        suffix = kind.split("_")[0]
        files[kind] = [folder / f"{kind}_{number}.{suffix}" for number in range(count)]
        for number, path in enumerate(files[kind]):
            natural_image(*size, seed=number).save(path, quality=85)
    return files


def speech_like(seconds: float, rate: int, seed: int) -> NDArray[np.float32]:
    """Gliding voice with syllables, pauses and the noise of a room."""
    random = np.random.default_rng(seed)
    time_axis = np.arange(int(seconds * rate)) / rate
    pitch = np.cumsum(130 + 40 * np.sin(2 * np.pi * random.uniform(0.3, 0.9) * time_axis)) / rate
    voice = sum(np.sin(2 * np.pi * k * pitch + random.uniform(0, 6)) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * random.uniform(2, 4) * time_axis) + 0.3, 0, 1)
    noise = random.normal(size=len(time_axis))
    return np.asarray(0.15 * voice * syllables + (0.02 * syllables**2 + 5e-4) * noise, np.float32)


def write_clips(folder: Path, count: int) -> dict[str, list[Path]]:
    """`count` clips of 2 to 5 s of each of `AUDIO_KINDS`, 16 bits."""
    files: dict[str, list[Path]] = {}
    for kind, rate in AUDIO_KINDS.items():
        suffix = kind.split("_")[0]
        files[kind] = [folder / f"{kind}_{number}.{suffix}" for number in range(count)]
        for number, path in enumerate(files[kind]):
            soundfile.write(path, speech_like(2 + 3 * number / count, rate, number), rate, subtype="PCM_16")
    return files


def bare_image(path: Path) -> Image.Image:
    """Decode and resize by hand, the whole picture decoded."""
    image = Image.open(path)
    size = fit_into_budget(*image.size, PATCH_SIZE, MAX_TOKENS)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def bare_image_draft(path: Path) -> Image.Image:
    """The same as `Image.thumbnail` does it: JPEG decoded at reduced scale, at least twice the size."""
    image = Image.open(path)
    size = fit_into_budget(*image.size, PATCH_SIZE, MAX_TOKENS)
    image.draft("RGB", (2 * size[0], 2 * size[1]))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


class BareMel:
    """soundfile, soxr and a log-mel spectrogram by hand."""

    def __init__(self) -> None:
        self.filters = mel_filters(N_MELS, N_FFT, RATE)
        self.window = torch.hann_window(WINDOW)

    def __call__(self, path: Path) -> torch.Tensor:
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != RATE:
            samples = soxr.resample(samples, rate, RATE)
        spectrum = torch.stft(torch.from_numpy(samples), N_FFT, HOP, WINDOW, self.window, return_complex=True)
        logarithm = (self.filters @ spectrum.abs().square()).clamp_min(1e-10).log()
        return torch.maximum(logarithm, logarithm.max() - 18.4)


def compare(ours: Callable[[], float], bare: Callable[[], float], repeats: int) -> Comparison:
    """Run two measurements (items a second) in turn."""
    rates = [(ours(), bare()) for _ in range(repeats)]
    return Comparison(
        statistics.median(rate for rate, _ in rates),
        statistics.median(rate for _, rate in rates),
        statistics.median(one / other for one, other in rates),
    )


def in_process(
    paths: list[Path], encode: Callable[[Path], object], bare: Callable[[Path], object], repeats: int
) -> Comparison:
    """Both in this process, one item after the other."""

    def rate_of(function: Callable[[Path], object]) -> float:
        start = time.perf_counter()
        for path in paths:
            function(path)
        return len(paths) / (time.perf_counter() - start)

    rate_of(encode), rate_of(bare)
    return compare(lambda: rate_of(encode), lambda: rate_of(bare), repeats)


class BareItems(IterableDataset[int]):
    """Endless files, each treated by a function; only how many they were is sent, now and then."""

    def __init__(self, paths: list[Path], function: Callable[[Path], object]) -> None:
        self.paths, self.function = paths, function

    def __iter__(self) -> Iterator[int]:
        while True:
            for start in range(0, len(self.paths), BARE_AT_ONCE):
                some = self.paths[start : start + BARE_AT_ONCE]
                for path in some:
                    self.function(path)
                yield len(some)


def in_workers(
    paths: list[Path],
    modality: Modality,
    bare: Callable[[Path], object],
    workers: int,
    items: int,
    repeats: int,
) -> Comparison:
    """Ours: documents -> pieces -> rows -> batches out of loader workers; bare: the work alone."""
    index = paths[0].with_suffix(".jsonl")
    lines = [json.dumps({"items": [{"modality": modality.name, "path": path.name}]}) for path in paths]
    index.write_text("\n".join(lines) + "\n")

    def ours() -> float:
        data = OmniDataModule(
            [modality],
            train={"media": JsonLines(index)},
            row_length=1024,
            rows_per_batch=4,
            num_workers=workers,
            buffer_size=8,
        )
        data.setup("fit")
        return _rate(iter(data.train_dataloader()), _count_media, items)

    def by_hand() -> float:
        loader = DataLoader(BareItems(paths, bare), batch_size=None, num_workers=workers)
        return _rate(iter(loader), int, items)

    return compare(ours, by_hand, repeats)


def _count_media(batch: Batch) -> int:
    """Media of the one modality in a batch: each has one token at the origin."""
    (tokens,) = batch.modalities.values()
    assert tokens.positions_2d is not None
    return int((tokens.positions_2d == 0).all(dim=1).sum())


def _rate(loader: Iterator[Any], count: Callable[[Any], int], items: int) -> float:
    """Items a second once a loader is in its stride."""
    warm = 0
    while warm < WARM_UP_ITEMS:
        warm += count(next(loader))
    start, done = time.perf_counter(), 0
    while done < items:
        done += count(next(loader))
    return done / (time.perf_counter() - start)


def measure(count: int = 16, repeats: int = 5, workers: int = 2, items: int = 240) -> dict[str, Comparison]:
    """All comparisons by name.

    Args:
        count: files of each kind.
        repeats: turns of each comparison.
        workers: loader processes.
        items: media timed a turn in workers.
    """
    images, audio, mel = ImageModality(PATCH_SIZE, MAX_TOKENS), AudioModality(), BareMel()
    result: dict[str, Comparison] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, paths in write_images(folder, count).items():
            result[f"{kind}_1_process"] = in_process(paths, images.encode, bare_image, repeats)
            if kind.startswith("jpeg"):
                result[f"{kind}_1_process_draft"] = in_process(
                    paths, images.encode, bare_image_draft, repeats
                )
            result[f"{kind}_{workers}_workers"] = in_workers(
                paths, images, bare_image_draft, workers, items, repeats
            )
        for kind, paths in write_clips(folder, count).items():
            result[f"{kind}_1_process"] = in_process(paths, audio.encode, mel, repeats)
            result[f"{kind}_{workers}_workers"] = in_workers(paths, audio, mel, workers, 4 * items, repeats)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="files of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--items", type=int, default=240, help="media timed a turn in workers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `onn fit` does
    torch.set_num_threads(1)  # as in loader workers
    result = measure(arguments.count, arguments.repeats, arguments.workers, arguments.items)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    if arguments.json:
        rows = {name: vars(comparison) for name, comparison in result.items()}
        print(json.dumps({"machine": machine, **rows}, indent=1))
        return
    print(f"{machine}; items a second\n{'':34}{'ours':>10}{'bare':>10}{'ratio':>8}")
    for name, one in result.items():
        print(f"{name:34}{one.ours_per_second:10.1f}{one.bare_per_second:10.1f}{one.ratio:8.3f}")


if __name__ == "__main__":
    main()
