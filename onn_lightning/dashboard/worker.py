"""The drawing process: `python -P -m onn_lightning.dashboard.worker PARENT`, fed by the process of that id.

Notable:
- Jobs come in on standard input and answers go out on standard output, both pickled by the other half of the
  same program; what libraries print goes to standard error.
- It ends when its input ends, and when its parent is gone: loader workers that were forked after it may hold
  the pipe open, so the parent is watched too.
- It runs at low priority: on a machine without cores to spare, training goes first.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from onn_lightning.dashboard import draw
from onn_lightning.dashboard.curves import CurveReader
from onn_lightning.dashboard.files import write_whole
from onn_lightning.dashboard.heatmap import FILE, NeuronHistory, save_arrays
from onn_lightning.dashboard.histogram import histogram
from onn_lightning.dashboard.job import CORE_METRICS, NEURONS, NEURONS_TAG, Drawn, Image, Job

PARENT_WATCH_SECONDS = 0.5


class Artist:
    """Does one job after another; keeps what it has read of the logs."""

    def __init__(self) -> None:
        self._readers: dict[Path, CurveReader] = {}

    def do(self, job: Job) -> Drawn:
        """Draw what the job asks for; what fails is named, and the rest is done."""
        problems: list[str] = []
        images: dict[str, Image] = {}

        def attempt(what: str, part: Callable[[], None]) -> None:
            try:
                part()
            except Exception as error:  # whatever it is, training must not suffer from it
                problems.append(f"{what}: {error or type(error).__name__}")

        if job.logs is not None:
            attempt(CORE_METRICS, lambda: self._draw_curves(job))
        if job.history is not None:
            arrays = job.history
            attempt(FILE, lambda: save_arrays(arrays, job.folder / FILE))
            attempt(NEURONS, lambda: images.update(_draw_neurons(job)))
        counted = {tag: histogram(values) for tag, values in job.samples.items()}
        histograms = {tag: counts for tag, counts in counted.items() if counts is not None}
        return Drawn(job.step, tuple(problems), histograms, images)

    def _draw_curves(self, job: Job) -> None:
        assert job.logs is not None
        reader = self._readers.setdefault(job.logs, CurveReader(job.logs))
        figure = draw.core_metrics(reader.read(), _title(job))
        if figure is not None:
            draw.save(figure, job.folder / CORE_METRICS)


def _title(job: Job) -> str:
    return f"{job.folder.name}, step {job.step:,}"


def _draw_neurons(job: Job) -> dict[str, Image]:
    """Write the picture; it comes back as an image too where that is asked for."""
    assert job.history is not None
    figure = draw.neurons(NeuronHistory.from_arrays(job.history), _title(job))
    if figure is None:
        return {}
    png = draw.png(figure)
    write_whole(job.folder / NEURONS, png)
    width, height = (int(length) for length in figure.get_size_inches() * draw.DPI)
    return {NEURONS_TAG: Image(png, width, height)} if job.images else {}


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_WATCH_SECONDS)
    os._exit(0)


def main() -> None:
    """Serve until the input ends or the parent is gone."""
    parent = int(sys.argv[1])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.nice(10)
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    draw.use_chinese_fonts()
    artist = Artist()
    while True:
        try:
            job = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(artist.do(job), answers)
        answers.flush()


if __name__ == "__main__":
    main()
