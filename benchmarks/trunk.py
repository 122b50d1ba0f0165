"""Cost of the trunk: gate loss, two-pass reference, GEMM rate, a dense transformer of equal FLOPs.

Every comparison runs interleaved in this one process (A B A B ...) and reports the median of the
pairwise ratios, so that a machine whose speed drifts does not decide. Peak memory is measured in child
processes, as the growth of the resident set over the built model.

    python benchmarks/trunk.py --json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onn_lightning.cli.allocator import keep_freed_memory
from onn_lightning.flops import trunk_forward_flops
from onn_lightning.nn import MoIETrunk, TrunkConfig
from onn_lightning.nn.norm import rms_normalize
from onn_lightning.nn.sbl import SBLObserver, SparseBayesianLinear

W_GATE = 0.001
CHILD_MEASURES = ("memory_gate", "memory_plain", "seconds_kept", "seconds_default")


class Step:
    """One training step (forward, backward) of a trunk on fixed inputs.

    Args:
        config: shape of the trunk.
        rows, length: B, T.
    """

    def __init__(self, config: TrunkConfig, rows: int, length: int) -> None:
        torch.manual_seed(0)
        self.trunk = MoIETrunk(config)
        self.x = torch.randn(rows, length, config.hidden_size)
        self.direction = torch.randn_like(self.x)
        self.positions = torch.arange(length).expand(rows, length)

    def one_pass(self) -> None:
        """The product's step, gate loss included."""
        self.trunk.zero_grad()
        output = self.trunk(self.x, self.positions)
        ((output.hidden * self.direction).mean() + W_GATE * output.auxiliary.gate_handle).backward()

    def plain(self) -> None:
        """The same step without the gate loss: no surprise is taken, nothing injected."""
        unobserved = [torch.zeros(layer.out_features) for _, layer in self.trunk.sbl_layers()]
        self._loss(SBLObserver(unobserved)).backward()

    def _loss(self, observer: SBLObserver) -> Tensor:
        self.trunk.zero_grad()
        x, rotary = self.x, self.trunk.rotary(self.positions)
        for layer, block in enumerate(self.trunk.blocks):
            x = block(x, rotary, None, observer, None, layer)
        return (rms_normalize(x) * self.direction).mean()

    def two_pass(self) -> None:
        """The same gradients the plain way: a first backward for G, a second one for the sum."""
        observer = TwoPassObserver()
        loss = self._loss(observer)
        grads = torch.autograd.grad(loss, observer.outputs, retain_graph=True)
        gate_loss = loss.new_zeros(())
        for fire, grad in zip(observer.fires, grads, strict=True):
            surprise = grad.norm(dim=0)
            p = surprise / surprise.sum()
            pull = (-p.log() - 1) / (surprise.sum() * surprise)
            gate_loss = gate_loss + (pull * (fire * grad.square()).sum(dim=0)).sum()
        (loss + W_GATE * gate_loss).backward()


class TwoPassObserver(SBLObserver):
    """Runs the SBLs by plain autograd and keeps the firing strengths, with x detached from them."""

    def __init__(self) -> None:
        super().__init__()
        self.fires: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __call__(self, layer: SparseBayesianLinear, x: Tensor) -> Tensor:
        keys = layer.mu_weight * F.softplus(layer.sigma_weight) * layer.score_scale
        fire = torch.relu(F.linear(x, keys, -layer.gate_param))
        y = fire * F.linear(x, layer.mu_weight, layer.mu_bias)
        self.fires.append(torch.relu(F.linear(x.detach(), keys, -layer.gate_param)).flatten(0, -2))
        flat = y.flatten(0, -2)
        self.outputs.append(flat)
        return flat.view_as(y)


def llama_step(config: TrunkConfig, rows: int, length: int) -> tuple[Callable[[], None], float]:
    """Forward and backward of transformers' Llama of the trunk's width and FLOPs."""
    from transformers import LlamaConfig, LlamaModel

    width, layers = config.hidden_size, config.num_layers
    attention = 4 * width * width + 2 * width * length / 2
    target = trunk_forward_flops(config, length) / 2 / layers
    intermediate = max(32, round((target - attention) / (3 * width) / 32) * 32)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=32,
            hidden_size=width,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=length,
            use_cache=False,
        )
    )
    x = torch.randn(rows, length, width)
    direction = torch.randn_like(x)

    def step() -> None:
        model.zero_grad()
        hidden = model(inputs_embeds=x).last_hidden_state
        (hidden * direction).mean().backward()

    return step, layers * 2 * (attention + 3 * width * intermediate)


def gemm_step(rows: int, inner: int, outer: int) -> tuple[Callable[[], None], float]:
    """The products of a linear layer's forward and backward, nothing else; returns (step, FLOPs)."""
    x, weight, grad = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)

    def step() -> None:
        torch.mm(x, weight.T)
        torch.mm(grad, weight)
        torch.mm(grad.T, x)

    return step, 3 * 2 * rows * inner * outer


def interleave(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every step, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(a: list[float], b: list[float]) -> float:
    """Median of the pairwise ratios a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def in_child(arguments: argparse.Namespace, measure: str) -> float:
    """One of `CHILD_MEASURES`, taken in a process of its own."""
    command = [sys.executable, __file__, "--child", measure]
    for name in ("width", "layers", "rows", "length"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def step_seconds(step: Callable[[], Any], keep: bool) -> float:
    """Median seconds of a step, with or without glibc keeping what is freed (as `onn fit` has it do)."""
    if keep:
        keep_freed_memory()
    return statistics.median(interleave({"step": step}, 6)["step"])


def grow(step: Callable[[], Any]) -> float:
    """MiB of peak resident growth over two calls (VmHWM: ru_maxrss would start at the parent's peak)."""
    before = resident("VmRSS")
    step()
    step()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """KiB of one of the kernel's figures on this process's memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", choices=CHILD_MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    config = TrunkConfig(arguments.width, arguments.layers, max(1, arguments.width // 64))
    step = Step(config, arguments.rows, arguments.length)
    if arguments.child:
        measures: dict[str, Callable[[], float]] = {
            "memory_gate": lambda: grow(step.one_pass),
            "memory_plain": lambda: grow(step.plain),
            "seconds_kept": lambda: step_seconds(step.one_pass, keep=True),
            "seconds_default": lambda: step_seconds(step.one_pass, keep=False),
        }
        print(measures[arguments.child]())
        return
    children: dict[str, list[float]] = {measure: [] for measure in CHILD_MEASURES}
    for _ in range(3):
        for measure in CHILD_MEASURES:
            children[measure].append(in_child(arguments, measure))
    keep_freed_memory()

    tokens = arguments.rows * arguments.length
    llama, llama_flops = llama_step(config, arguments.rows, arguments.length)
    gemm, gemm_flops = gemm_step(tokens, arguments.width, 2 * config.feed_forward_sizes[0])
    seconds = interleave(
        {
            "gate": step.one_pass,
            "plain": step.plain,
            "two_pass": step.two_pass,
            "gemm": gemm,
            "llama": llama,
        },
        arguments.repeats,
    )
    flops = 3 * tokens * trunk_forward_flops(config, arguments.length)
    gemm_rate = [gemm_flops / value for value in seconds["gemm"]]
    trunk_rate = [flops / value for value in seconds["gate"]]
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "width": arguments.width,
        "layers": arguments.layers,
        "tokens_per_step": tokens,
        "gate_over_plain_time": median_ratio(seconds["gate"], seconds["plain"]),
        "gate_over_plain_peak_memory": median_ratio(children["memory_gate"], children["memory_plain"]),
        "one_pass_over_two_pass_time": median_ratio(seconds["gate"], seconds["two_pass"]),
        "kept_over_default_allocator_time": median_ratio(
            children["seconds_kept"], children["seconds_default"]
        ),
        "fraction_of_gemm_rate": median_ratio(trunk_rate, gemm_rate),
        "gemm_gflops": statistics.median(gemm_rate) / 1e9,
        "tokens_per_second": tokens / statistics.median(seconds["gate"]),
        "llama_tokens_per_second": tokens / statistics.median(seconds["llama"]),
        "trunk_over_llama_tokens_per_second": median_ratio(seconds["llama"], seconds["gate"]),
        "llama_over_trunk_flops": llama_flops / trunk_forward_flops(config, arguments.length),
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:36} {value:.3f}" if isinstance(value, float) else f"{name:36} {value}")


if __name__ == "__main__":
    main()
