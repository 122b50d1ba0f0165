"""What scale costs and gains: ranks, compiled blocks, gradient checkpointing, saving, and MFU on a GPU.

- ranks: step time of 2 ranks over that of 1, each with the same work and one core (DDP and FSDP2): 1 would be
  perfect scaling;
- compile: step time with `CompileBlocks` over without;
- checkpointing: step time and peak growth of memory of `GradientCheckpointing`'s modes over none;
- saving: seconds that a step waits for a checkpoint of `RunCheckpoint`, written at once or in background;
- mfu (CUDA, or with --tiny): model FLOPs utilisation of the 0.1B of `bonsai_0.1b.yaml` in whole training
  steps, and of blocks shaped as `omni_3b.yaml`'s in forward and backward; in bfloat16, compiled or not.

All but the last are runs of the product's trainer (`scale_runs.py`). Compared runs take turns (A B A B ...);
figures are medians, ratios medians of the pairwise ones.

    python benchmarks/scale.py --json
    python benchmarks/scale.py --only ranks --only saving
    python benchmarks/scale.py --tiny --json      # all parts, at sizes that say nothing, to see them run
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback

from benchmarks.monitor import make_batch
from benchmarks.scale_runs import Size, launch, quiet, text, train
from benchmarks.trunk import interleave, median_ratio
from onn_lightning import OmniModule
from onn_lightning.callbacks import CompileBlocks, GradientCheckpointing, RunCheckpoint
from onn_lightning.cli.data_config import build_outline
from onn_lightning.flops import measured_gemm_rate, training_flops, trunk_forward_flops
from onn_lightning.nn import MoIETrunk, TrunkConfig
from onn_lightning.nn.recompute import Checkpointing

W_GATE = 0.001
MODES: tuple[Checkpointing, ...] = ("none", "block", "selective")
STRATEGIES = ("ddp", "fsdp2")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How large everything is.

    Args:
        ranks, compile, memory, saving: sizes of the runs of a part.
        save_every: steps between two checkpoints of the part "saving".
        repeats: rounds of runs that take turns.
        backend: of torch.compile.
        mfu_length: tokens in a row of the part "mfu".
        shrink: factor on the widths of the part "mfu"; 1: as in the configs.
        blocks: of the 3B's shape.
    """

    ranks: Size
    compile: Size
    memory: Size
    saving: Size
    save_every: int
    repeats: int
    backend: str
    mfu_length: int
    shrink: int
    blocks: int


def plan(device: str, tiny: bool) -> Plan:
    """Sizes for a device."""
    if tiny:
        small = Size(48, 1, 2, 32, steps=3, accelerator=device)
        return Plan(small, small, small, dataclasses.replace(small, steps=5), 2, 1, "aot_eager", 64, 16, 1)
    if device == "cuda":
        large = Size(768, 12, 4, 4096, steps=20, warm=5, accelerator="cuda", precision="bf16-mixed")
        return Plan(large, large, large, large, 5, 3, "inductor", 8192, 1, 2)
    return Plan(
        ranks=Size(192, 4, 4, 256, steps=8),
        compile=Size(192, 4, 4, 256, steps=6),
        memory=Size(192, 6, 2, 1024, steps=3),
        saving=Size(384, 6, 1, 256, steps=13),
        save_every=4,
        repeats=3,
        backend="inductor",
        mfu_length=0,
        shrink=1,
        blocks=0,
    )


def measure_ranks(plan: Plan) -> dict[str, float]:
    """Step time of two ranks over one."""
    seconds: dict[str, list[float]] = {"alone": [], **{name: [] for name in STRATEGIES}}
    size = dataclasses.asdict(plan.ranks)
    for _ in range(plan.repeats):
        seconds["alone"].append(launch(measure="seconds", size=size))
        for name in STRATEGIES:
            seconds[name].append(launch(measure="seconds", size=size, strategy=name, ranks=2))
    return {"one_rank_seconds": statistics.median(seconds["alone"])} | {
        f"{name}_2_ranks_over_1": median_ratio(seconds[name], seconds["alone"]) for name in STRATEGIES
    }


def measure_compile(plan: Plan) -> dict[str, float]:
    """Step time compiled over not compiled."""
    runs: dict[str, Callable[[], Sequence[Callback]]] = {
        "compiled": lambda: [CompileBlocks(backend=plan.backend)],
        "plain": lambda: [],
    }
    seconds = _in_turn(plan.compile, runs, plan.repeats)
    return {
        "plain_seconds": statistics.median(seconds["plain"]),
        "compiled_over_plain_time": median_ratio(seconds["compiled"], seconds["plain"]),
    }


def measure_checkpointing(plan: Plan) -> dict[str, float]:
    """Time and memory of the modes over none."""
    runs = {mode: lambda mode=mode: [GradientCheckpointing(mode)] for mode in MODES}
    seconds = _in_turn(plan.memory, runs, plan.repeats)
    size = dataclasses.asdict(plan.memory)
    peaks = {mode: launch(measure="memory", size=size, checkpointing=mode) for mode in MODES}
    result = {"none_peak_growth_mib": peaks["none"]}
    for mode in MODES[1:]:
        result[f"{mode}_over_none_time"] = median_ratio(seconds[mode], seconds["none"])
        result[f"{mode}_over_none_peak_growth"] = peaks[mode] / peaks["none"]
    return result


def _in_turn(
    size: Size, runs: dict[str, Callable[[], Sequence[Callback]]], repeats: int
) -> dict[str, list[float]]:
    """Median seconds of a step in every run."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, callbacks in runs.items():
            seconds[name].append(statistics.median(train(size, callbacks())))
    return seconds


def measure_saving(plan: Plan) -> dict[str, float]:
    """How much longer the step is that a checkpoint comes before, written at once and in the background."""
    stalls: dict[str, list[float]] = {"at_once": [], "in_background": []}
    size, every = plan.saving, plan.save_every
    for _ in range(plan.repeats):
        for name in stalls:
            saves = RunCheckpoint(every_n_train_steps=every, in_background=name == "in_background")
            seconds = train(size, [saves])
            after = [value for step, value in enumerate(seconds, start=size.warm) if step % every == 0]
            others = [value for step, value in enumerate(seconds, start=size.warm) if step % every]
            stalls[name].append(statistics.median(after) - statistics.median(others))
    weights = sum(weight.numel() for weight in OmniModule(size.trunk, [text()]).parameters())
    return {
        "weights_and_moments_megabytes": 12 * weights / 1e6,
        "save_at_once_seconds": statistics.median(stalls["at_once"]),
        "background_stall_seconds": statistics.median(stalls["in_background"]),
        "background_stall_over_at_once": median_ratio(stalls["in_background"], stalls["at_once"]),
    }


def measure_mfu(plan: Plan, device: str) -> dict[str, float]:
    """Utilisation of the 0.1B, and of blocks of the 3B's shape."""
    result = {}
    for name, backend in (("plain", None), ("compiled", plan.backend)):
        result[f"bonsai_0.1b_mfu_{name}"] = _training_mfu("bonsai_0.1b.yaml", plan, device, backend)
        result[f"omni_3b_blocks_mfu_{name}"] = _blocks_mfu("omni_3b.yaml", plan, device, backend)
    return result


def _outline(config: str, shrink: int, **trunk: Any) -> tuple[TrunkConfig, OmniModule]:
    described = build_outline("scale.py", [config], []).model
    shape = described.trunk.config
    if shrink > 1:
        trunk |= {"hidden_size": shape.hidden_size // shrink // 4 * 4, "num_layers": 1, "num_heads": 1}
        trunk |= {"num_kv_heads": 1, "head_dim": 8, "intermediate_size": 64}
    return dataclasses.replace(shape, **trunk), described


def _peak(device: str) -> float:
    """bfloat16's on CUDA, where Lightning's table knows it."""
    where = torch.device(device)
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    known = get_available_flops(where, kind) if device == "cuda" else None
    return float(known) if known else measured_gemm_rate(where, kind)


def _training_mfu(config: str, plan: Plan, device: str, backend: str | None) -> float:
    """Whole steps of training on one long row of text, as the config describes the network."""
    trunk, described = _outline(config, plan.shrink)
    modalities = list(described.modalities.values())
    module = OmniModule(trunk, modalities, described.optimizer)
    size = dataclasses.replace(plan.compile, rows=1, length=plan.mfu_length)
    batch = make_batch(described.modalities["text"], size.rows, size.length)
    seconds = train(size, [CompileBlocks(backend=backend)] if backend else [], module=module, batch=batch)
    flops = training_flops(module.trunk, module.embedders, module.heads, batch)
    return flops / statistics.median(seconds) / _peak(device)


def _blocks_mfu(config: str, plan: Plan, device: str, backend: str | None) -> float:
    """Forward and backward of a few blocks, the gate loss included."""
    shape, _ = _outline(config, plan.shrink, num_layers=plan.blocks)
    trunk = MoIETrunk(shape).to(device)
    if backend:
        for block in trunk.blocks:
            block.compile(backend=backend)
    x = torch.randn(1, plan.mfu_length, shape.hidden_size, device=device, requires_grad=True)
    positions = torch.arange(plan.mfu_length, device=device)[None]

    def step() -> None:
        trunk.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            output = trunk(x, positions)
        (output.hidden.float().square().mean() + W_GATE * output.auxiliary.gate_handle).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = interleave({"step": step}, plan.compile.steps)["step"]
    flops = 3 * plan.mfu_length * trunk_forward_flops(shape, plan.mfu_length)
    return flops / statistics.median(seconds) / _peak(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("ranks", "compile", "checkpointing", "saving", "mfu")
    parser.add_argument("--only", choices=parts, action="append", help="this part; repeatable")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to see that all runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    quiet()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = plan(device, arguments.tiny)
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "ranks": lambda: measure_ranks(sizes),
        "compile": lambda: measure_compile(sizes),
        "checkpointing": lambda: measure_checkpointing(sizes),
        "saving": lambda: measure_saving(sizes),
    }
    if sizes.mfu_length:
        measures["mfu"] = lambda: measure_mfu(sizes, device)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    result: dict[str, Any] = {
        "machine": f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    }
    for part, measure in measures.items():
        if arguments.only is None or part in arguments.only:
            result[part] = measure()
            print(f"{part} done", file=sys.stderr)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(result.pop("machine"))
    for part, figures in result.items():
        for figure, value in figures.items():
            print(f"{part:14} {figure:36} {value:.3f}")


if __name__ == "__main__":
    main()
