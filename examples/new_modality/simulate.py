"""Writes the example's data: recordings of a mass on a damped spring, each with its regime as text.

The sensor reads the displacement x of m x'' + c x' + k x = F cos(w t) twenty times a second, with noise.
Three regimes differ in what they look like, not in scale: underdamped (swings and dies away),
overdamped (creeps back), driven (keeps swinging).

    python examples/new_modality/simulate.py [folder, by default data/sensor]
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 20  # readings a second
SUBSTEPS = 50  # integration steps between readings
NOISE = 0.02  # of the first displacement
RECORDINGS = {"train": 600, "validation": 90}
REGIMES = ("underdamped", "overdamped", "driven")


def displacement(regime: str, seconds: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Integrate one recording (semi-implicit Euler, mass 1) and read it through a noisy sensor.

    Args:
        regime: one of `REGIMES`.
        seconds: length of the recording.
        random: source of the spring, the damper, the force and the noise.
    Returns:
        [seconds * RATE] readings.
    """
    frequency = 2 * np.pi * random.uniform(0.3, 1.5)  # rad/s; k = frequency**2
    damping_ratio = random.uniform(1.5, 4.0) if regime == "overdamped" else random.uniform(0.03, 0.15)
    force = frequency**2 * random.uniform(0.5, 1.0) if regime == "driven" else 0.0
    drive = frequency * random.uniform(0.5, 1.5)
    x, velocity, step = random.choice((-1.0, 1.0)), 0.0, 1 / (RATE * SUBSTEPS)
    readings = np.empty(int(seconds * RATE))
    for tick in range(len(readings)):
        readings[tick] = x
        for substep in range(SUBSTEPS):
            time = (tick * SUBSTEPS + substep) * step
            pull = force * np.cos(drive * time) - frequency**2 * x - 2 * damping_ratio * frequency * velocity
            velocity += step * pull
            x += step * velocity
    return readings + NOISE * random.normal(size=len(readings))


def write(folder: Path) -> None:
    """Write CSV files and one JSON Lines index a split."""
    random = np.random.default_rng(0)
    for split, count in RECORDINGS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            regime = REGIMES[number % len(REGIMES)]
            readings = displacement(regime, random.uniform(6, 12), random)
            path = folder / split / f"{number:04d}.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(("time", "value"))
                rows.writerows((f"{tick / RATE:.2f}", f"{x:.4f}") for tick, x in enumerate(readings))
            recording = {"modality": "sensor", "path": path.relative_to(folder).as_posix()}
            lines.append(json.dumps({"items": [recording, {"modality": "text", "text": regime}]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/sensor"))
