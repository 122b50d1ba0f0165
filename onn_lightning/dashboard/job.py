"""What the training process asks of the drawing process, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onn_lightning.dashboard.histogram import Histogram

CORE_METRICS = "core_metrics.png"
NEURONS = "neurons.png"
NEURONS_TAG = "neurons"  # of the same picture in TensorBoard


@dataclass(frozen=True)
class Job:
    """One drawing.

    Args:
        step: optimizer step at which it was asked for.
        folder: where the files go.
        logs: folder of the CSV logs of all starts; None: no curves are drawn.
        history: arrays of the neuron history; None: no neurons are drawn.
        samples: values whose histograms are wanted, by tag.
        images: whether the heatmaps are wanted as an image too.
    """

    step: int
    folder: Path
    logs: Path | None
    history: dict[str, NDArray] | None
    samples: dict[str, NDArray[np.floating]]
    images: bool


@dataclass(frozen=True)
class Image:
    """A picture as the bytes of a PNG file.

    Args:
        png: the file.
        width, height: pixels.
    """

    png: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Drawn:
    """What came of a job.

    Args:
        step: that of the job.
        problems: what went wrong, one line each; the rest was done.
        histograms, images: by tag.
    """

    step: int
    problems: tuple[str, ...]
    histograms: dict[str, Histogram]
    images: dict[str, Image]
