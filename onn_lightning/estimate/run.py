"""`estimate`: a run's parameters, operations, memory and tokens a day, as plain data.

Notable: operations are counted as MFU counts them, see `onn_lightning.flops`, all tokens as
supervised text; what gradient checkpointing computes once more does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from torch import nn

from onn_lightning.estimate.activations import Precision, Step, step_memory
from onn_lightning.estimate.states import States, strategies
from onn_lightning.flops import embedder_weights, head_weights, trunk_forward_flops
from onn_lightning.module import OmniModule
from onn_lightning.nn.recompute import Checkpointing

_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Args:
        parameters: by part; tied tables count once, with their embedder.
        forward, backward: FLOPs a token.
        attention: those of `forward` that are scores and mixing over the row.
        states: bytes of weights, gradients and optimizer a GPU, by strategy.
        steps: bytes of one micro-batch a GPU, by strategy and by what blocks keep for backward.
        tokens_per_day: of all GPUs; None where no peak was given.
    """

    parameters: Mapping[str, int]
    forward: float
    backward: float
    attention: float
    states: Mapping[str, States]
    steps: Mapping[str, Mapping[Checkpointing, Step]]
    tokens_per_day: float | None

    def peak(self, strategy: str, checkpointing: Checkpointing = "none") -> int:
        """Bytes that a GPU needs at most."""
        states = self.states[strategy]
        return states.total + self.steps[strategy][checkpointing].peak(states.gathered)


def estimate(
    module: OmniModule,
    rows: int,
    length: int,
    precision: Precision,
    gpus: int = 1,
    peak_flops: float | None = None,
    mfu: float = 0.4,
    tensor_parallel: int = 1,
) -> Estimate:
    """Estimate a run from the shapes of its module.

    Args:
        module: on any device, the meta device included.
        rows: B, of a micro-batch of one GPU.
        length: T, tokens in a row.
        precision: bytes of the numbers.
        gpus: of the whole run.
        peak_flops: FLOPs a second that one GPU could do.
        mfu: share of them that training reaches.
        tensor_parallel: GPUs that share the neurons of every layer, a divisor of `gpus`.
    """
    config = module.trunk.config
    embedder, head = _of_text(module.embedders), _of_text(module.heads)
    ends = 0.0
    if embedder is not None:
        ends += 2 * embedder_weights(embedder)
    if head is not None:
        ends += 2 * head_weights(head)
    trunk = trunk_forward_flops(config, length)
    forward = trunk + ends
    states = strategies(module, precision, gpus, tensor_parallel)

    def step(strategy: str, mode: Checkpointing) -> Step:
        ranks = tensor_parallel if strategy == "fsdp2_tp" else 1
        shards = gpus if strategy.startswith("fsdp2") else 1
        return step_memory(config, embedder, head, rows, length, precision, mode, ranks, shards)

    return Estimate(
        parameters=_parts(module),
        forward=forward,
        backward=2 * forward,
        attention=trunk - trunk_forward_flops(config, 0),
        states=states,
        steps={name: {mode: step(name, mode) for mode in get_args(Checkpointing)} for name in states},
        tokens_per_day=None
        if peak_flops is None
        else gpus * peak_flops * mfu * _SECONDS_A_DAY / (3 * forward),
    )


def _of_text(parts: nn.ModuleDict) -> nn.Module | None:
    return dict(parts.items()).get("text")


def _parts(module: OmniModule) -> dict[str, int]:
    """Parameters by part."""
    parts: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        top, *rest = name.split(".")
        if top == "trunk":
            key = f"trunk {rest[2]}"  # blocks.<number>.<attention or moie>
        elif top in ("embedders", "heads"):
            key = f"{rest[0]} {'embedder' if top == 'embedders' else 'head'}"
        else:
            key = top
        parts[key] = parts.get(key, 0) + parameter.numel()
    return parts
