"""A small network that has been trained for a few steps, as a checkpoint, for tests of reshaping."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from toy import ByteText, Patches, pack

from onn_lightning import Batch, Modality, OmniModule
from onn_lightning.nn import SBLForm, TrunkConfig
from onn_lightning.optim import MuonAdamW, parameter_groups

MODALITIES: list[Modality] = [ByteText(embedding_size=8), Patches()]
OPTIMIZERS: dict[str, Any] = {  # no lambdas: spawned processes get them
    "adamw": partial(torch.optim.AdamW, lr=3e-3, eps=1e-12, weight_decay=0.0),
    "muon": partial(MuonAdamW, lr=3e-3),
}


def some_batch() -> Batch:
    """Two rows of text and patches."""
    patches = torch.linspace(-1, 1, 9).view(3, 3)
    return pack(
        [[[("text", "hello wo")], [("text", "abc")]], [[("patch", patches), ("text", "seven")]]], MODALITIES
    )


@dataclass(frozen=True)
class Case:
    """A trained module, its optimizer, and both as a checkpoint."""

    module: OmniModule
    optimizer: torch.optim.Optimizer
    checkpoint: dict[str, Any]


def loss_of(module: OmniModule, batch: Batch) -> Tensor:
    """L_main of a batch."""
    return module.main_loss(module.predict_targets(batch, module(batch).hidden))


def step(module: OmniModule, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One training step; the loss before it."""
    optimizer.zero_grad()
    loss = loss_of(module, batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def trained_case(
    trunk: TrunkConfig, optimizer: str = "adamw", steps: int = 3, dtype: torch.dtype = torch.float64
) -> Case:
    """Train a network of this shape for a few steps."""
    torch.manual_seed(0)
    module = OmniModule(trunk, MODALITIES).to(dtype)
    made = OPTIMIZERS[optimizer](parameter_groups(module))
    batch = as_type(some_batch(), dtype)
    for _ in range(steps):
        step(module, made, batch)
    return Case(module, made, checkpoint_of(module, made, steps))


def checkpoint_of(module: OmniModule, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    """What a trainer would have saved, less the loops."""
    neurons = sum(layer.out_features for _, layer in module.trunk.sbl_layers())
    checkpoint: dict[str, Any] = {
        "global_step": steps,
        "state_dict": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "optimizer_states": [copy.deepcopy(optimizer.state_dict())],
        "callbacks": {
            "PIMonitor": {"fired_tokens_per_neuron": torch.arange(1.0, neurons + 1), "step": steps}
        },
    }
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def as_type(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with floating features and targets of a type."""

    def converted(tensor: Tensor | None) -> Tensor | None:
        return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor

    modalities = {
        name: dataclasses.replace(
            tokens, features=converted(tokens.features), targets=converted(tokens.targets)
        )
        for name, tokens in batch.modalities.items()
    }
    return dataclasses.replace(batch, modalities=modalities)


def made_from(
    checkpoint: dict[str, Any],
    trunk: TrunkConfig,
    modalities: Sequence[Modality] = MODALITIES,
    dtype: torch.dtype = torch.float64,
) -> OmniModule:
    """A module of a shape with the weights of a checkpoint."""
    module = OmniModule(trunk, list(modalities)).to(dtype)
    module.load_state_dict(checkpoint["state_dict"])
    return module


def optimizer_from(
    checkpoint: dict[str, Any], module: OmniModule, kind: str = "adamw"
) -> torch.optim.Optimizer:
    """An optimizer of a module with the state of a checkpoint."""
    optimizer: torch.optim.Optimizer = OPTIMIZERS[kind](parameter_groups(module))
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    return optimizer


def outputs(module: OmniModule, batch: Batch) -> Tensor:
    """[n] all logits and predictions of a batch, one after another."""
    hidden = module(batch).hidden
    text = module.heads["text"].logits(hidden)
    return torch.cat((text.flatten(), module.heads["patch"].projection(hidden).flatten()))


@st.composite
def trunks(draw: st.DrawFn) -> TrunkConfig:
    """Shapes in both forms, with and without shared keys and values."""
    layers = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 24), min_size=layers, max_size=layers))
    return TrunkConfig(
        hidden_size=16,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=draw(st.sampled_from([None, 1, 2])),
        intermediate_size=draw(st.sampled_from([sizes, sizes[0]])),
        sbl=SBLForm(
            normalized=draw(st.booleans()),
            gate=draw(st.sampled_from([-1.0, -0.3, 0.0])),
            sigma=draw(st.sampled_from([1.0, 0.4])),
        ),
    )
