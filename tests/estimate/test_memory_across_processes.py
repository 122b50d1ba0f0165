"""The predicted memory of a rank beside that of real ones: DDP, FSDP2, and FSDP2 with tensor parallelism.

Notable: what is sent is often freed by gloo's threads, of which torch's profiler takes no notice. c10's own
count of the memory on the CPU, which the profiler's events show, does so where it is switched on for all
threads; then every rank has the same peak in every run.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from ranks import run_ranks
from test_memory_prediction import measured_peak
from toy import ByteText

from onn_lightning import OmniModule
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.estimate.activations import PRECISIONS
from onn_lightning.estimate.run import estimate
from onn_lightning.nn import TrunkConfig
from onn_lightning.nn.recompute import Checkpointing

CONFIG, ROWS, LENGTH, WIDTH = TrunkConfig(192, 6, 4, 2), 2, 128, 64
RANKS = 2
STRATEGIES: dict[str, Callable[[], Any]] = {
    "ddp": lambda: DDPStrategy(gradient_as_bucket_view=True),
    "fsdp2": lambda: FSDP2Strategy(RANKS),
    "fsdp2_tp": lambda: FSDP2Strategy(1, tensor_parallel_size=RANKS),
}
CASES: list[tuple[str, Checkpointing]] = [
    ("ddp", "block"),
    ("fsdp2", "block"),
    ("fsdp2", "none"),
    ("fsdp2_tp", "none"),
    ("fsdp2_tp", "block"),
]


def count_in_all_threads() -> None:
    """Have c10 count what any thread takes and frees, and not those alone that the profiler watches."""
    c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(c10, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def measure(rank: int, folder: str) -> None:
    count_in_all_threads()
    place = Path(folder, str(rank))
    place.mkdir()
    peaks = [
        measured_peak(place, CONFIG, ROWS, LENGTH, WIDTH, mode, strategy=STRATEGIES[name](), devices=RANKS)
        for name, mode in CASES
    ]
    (place / "peaks.json").write_text(json.dumps(peaks))


@pytest.mark.slow
def test_the_predicted_peak_of_a_rank_is_within_a_tenth_of_the_measured_one(tmp_path: Path) -> None:
    run_ranks(measure, str(tmp_path))
    with torch.device("meta"):
        module = OmniModule(CONFIG, [ByteText(WIDTH)], w_gate=0.1)
    found = estimate(module, ROWS, LENGTH, PRECISIONS["32-true"], RANKS, tensor_parallel=RANKS)
    predicted = [found.peak(name, mode) for name, mode in CASES]
    for rank in range(RANKS):
        peaks = json.loads((tmp_path / str(rank) / "peaks.json").read_text())
        assert predicted == pytest.approx(peaks, rel=0.1)
