"""Cost of gradient checkpointing: memory and time of its modes, and of one mask for all layers.

Compared are a trunk that keeps everything ("none"), torch's own checkpoint around every block, which decides
once more who fires ("naive"), and the trunk's modes "block" and "selective". Times are taken interleaved in
one process; ratios are medians of pairwise ones. Memory is the peak of what a step allocates beyond weights,
gradients and inputs: on a CPU counted by torch's profiler from every allocation, on CUDA by its allocator.
The "whole" ratios add weights, gradients and the two moments of AdamW.

    python benchmarks/recompute.py --json
    python benchmarks/recompute.py --quick
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from trunk import W_GATE, interleave, median_ratio

from onn_lightning.cli.allocator import keep_freed_memory
from onn_lightning.nn import MoIETrunk, TrunkConfig
from onn_lightning.nn.attention import additive_mask, packed_causal_mask
from onn_lightning.nn.norm import rms_normalize
from onn_lightning.nn.recompute import Checkpointing, run_block


class Step:
    """Forward and backward of a trunk on fixed rows of packed documents, the gate loss included.

    Args:
        config: shape of the trunk.
        rows, length: B, T.
        documents: in a row.
        device: where it runs; on CUDA under bfloat16 autocast.
    """

    def __init__(
        self, config: TrunkConfig, rows: int, length: int, documents: int, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.trunk = MoIETrunk(config).to(device)
        self.x = torch.randn(rows, length, config.hidden_size, device=device)
        self.direction = torch.randn_like(self.x)
        size = -(-length // documents)
        places = torch.arange(length, device=device).expand(rows, length)
        self.positions, self.document_ids = places % size, places // size

    def run(self, mode: Checkpointing) -> None:
        """One step of the product."""
        self.trunk.checkpointing = mode
        with self._autocast():
            output = self.trunk(self.x, self.positions, self.document_ids)
        self._backward(output.hidden, output.auxiliary.gate_handle)

    def naive(self) -> None:
        """The same with torch's checkpoint around every block: the gates are inside."""
        self._by_hand(self._mask(), checkpointed=True)

    def bool_mask(self) -> None:
        """Without checkpoints, and with a mask of which every layer makes numbers of its own."""
        self._by_hand(packed_causal_mask(self.document_ids), checkpointed=False)

    def _mask(self) -> Tensor:
        dtype = torch.bfloat16 if self.device.type == "cuda" else self.x.dtype
        return additive_mask(packed_causal_mask(self.document_ids), dtype)

    def _by_hand(self, mask: Tensor, checkpointed: bool) -> None:
        trunk, x, handles = self.trunk, self.x, []
        sizes = iter([layer.out_features for _, layer in trunk.sbl_layers()])
        with self._autocast():
            rotary = trunk.rotary(self.positions)
            for block in trunk.blocks:
                surprise = [
                    torch.zeros(next(sizes), device=self.device, requires_grad=True) for _ in range(4)
                ]
                arguments: tuple[Any, ...] = (block, x, rotary, mask, surprise)
                if checkpointed:
                    seen = checkpoint(run_block, *arguments, use_reentrant=False, preserve_rng_state=False)
                else:
                    seen = run_block(*arguments)
                x = seen.hidden
                handles += seen.gate_handles
            hidden = rms_normalize(x)
        self._backward(hidden, torch.stack(handles).sum())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _backward(self, hidden: Tensor, handle: Tensor) -> None:
        self.trunk.zero_grad(set_to_none=False)
        ((hidden * self.direction).mean() + W_GATE * handle).backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """The most that a step allocates at a time, beyond what was there before."""
    step()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event["args"] for event in events if event["name"] == "[memory]"]
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return max(event["Total Allocated"] for event in memory) - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=4, help="in a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small trunk: about half a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.width, arguments.layers, arguments.length, arguments.repeats = 256, 4, 512, 5

    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrunkConfig(arguments.width, arguments.layers, max(1, arguments.width // 64))
    step = Step(config, arguments.rows, arguments.length, arguments.documents, device)
    steps: dict[str, Callable[[], None]] = {
        "none": lambda: step.run("none"),
        "naive": step.naive,
        "block": lambda: step.run("block"),
        "selective": lambda: step.run("selective"),
        "bool_mask": step.bool_mask,
    }
    peaks = {name: peak_bytes(run, device) for name, run in steps.items()}
    states = 4 * 4 * sum(parameter.numel() for parameter in step.trunk.parameters())
    seconds = interleave(steps, arguments.repeats)
    result: dict[str, Any] = {
        "machine": f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "width": arguments.width,
        "layers": arguments.layers,
        "tokens_per_step": arguments.rows * arguments.length,
    }
    result |= {f"{name}_peak_mib": peak / 2**20 for name, peak in peaks.items()}
    result["weights_gradients_moments_mib"] = states / 2**20
    for name in ("naive", "block", "selective"):
        result[f"{name}_over_none_time"] = median_ratio(seconds[name], seconds["none"])
        result[f"{name}_over_none_peak"] = peaks[name] / peaks["none"]
    for name in ("block", "selective"):
        result[f"{name}_over_naive_time"] = median_ratio(seconds[name], seconds["naive"])
        result[f"{name}_over_naive_peak"] = peaks[name] / peaks["naive"]
        result[f"{name}_over_naive_whole"] = (states + peaks[name]) / (states + peaks["naive"])
    result["one_mask_over_one_a_layer_time"] = median_ratio(seconds["none"], seconds["bool_mask"])
    result["one_mask_over_one_a_layer_peak"] = peaks["none"] / peaks["bool_mask"]
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:36} {value:.3f}" if isinstance(value, float) else f"{name:36} {value}")


if __name__ == "__main__":
    main()
