"""How much memory a process has needed at most, asked of the host alone: no device is waited for."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak; None where nobody says.

    On CUDA those that torch had allocated on the device since the last call, elsewhere the process's resident
    memory since it began.

    Args:
        device: where training runs.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    if _STATUS.exists():  # Linux; getrusage would count what a parent process had before it forked
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        return next((1024 * int(words[1]) for words in lines if words[:1] == ["VmHWM:"]), None)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes there
    return None
