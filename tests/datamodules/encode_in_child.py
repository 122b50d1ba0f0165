"""Encodes files in a process of its own and says what each of them cost.

    python encode_in_child.py image|audio FOLDER    prints one JSON object a file

Notable:
- Warnings are errors, so that none can escape unseen; what C libraries print goes to this process's own
  stderr, which the test looks at.
- The kernel's high-water mark of resident memory is reset before each file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Args:
        name: of the file.
        tokens: of the segment; 0: refused.
        message: of the refusal.
        seconds: that it took.
        mebibytes: by which resident memory grew at its highest.
    """

    name: str
    tokens: int
    message: str
    seconds: float
    mebibytes: float


def encode_all(kind: str, folder: Path, timeout: float, **environment: str) -> dict[str, Outcome]:
    """Encode every file of a folder in one child process.

    Args:
        kind: "image" or "audio".
        folder: of the files.
        timeout: seconds for all of them.
        environment: of the child.
    """
    done = subprocess.run(
        [sys.executable, __file__, kind, str(folder)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    return {outcome.name: outcome for outcome in outcomes}


def _main(kind: str, folder: Path) -> None:
    from datamodules import AudioModality, ImageModality

    modality: Any = ImageModality() if kind == "image" else AudioModality(max_seconds=5, cut_long=True)
    modality.encode(modality_sample(kind))  # loads what is loaded on first use
    for path in sorted(folder.iterdir()):
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        start = time.perf_counter()
        tokens, message = _encode(modality, path)
        seconds = time.perf_counter() - start
        grown = (_resident("VmHWM") - before) / 1024
        print(json.dumps(vars(Outcome(path.name, tokens, message, seconds, grown))), flush=True)


def modality_sample(kind: str) -> Any:
    """Something that can be encoded."""
    import numpy as np
    from PIL import Image

    return Image.new("RGB", (600, 400)) if kind == "image" else (np.sin(np.arange(48_000)), 16_000)


def _encode(modality: Any, path: Path) -> tuple[int, str]:
    from onn_lightning.modality import BadSampleError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return len(modality.encode(path)), ""
        except BadSampleError as error:
            return 0, str(error)


def _resident(field: str) -> int:
    """KiB of one of the kernel's figures on this process's memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
