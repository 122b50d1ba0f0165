"""A fresh tower neither explodes nor dies, at any depth and width: norms of activations and of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onn_lightning.nn import MoIETrunk, SBLForm, TrunkConfig


def run(width: int, depth: int, form: SBLForm) -> tuple[MoIETrunk, list[Tensor], Tensor]:
    """One step on unit-variance tokens; returns the tower, the stream after each block and dL/dx."""
    torch.manual_seed(0)
    trunk = MoIETrunk(TrunkConfig(hidden_size=width, num_layers=depth, num_heads=4, sbl=form))
    stream: list[Tensor] = []
    for block in trunk.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: stream.append(output.detach()))
    x = torch.randn(2, 16, width, requires_grad=True)
    output = trunk(x, torch.arange(16).expand(2, 16))
    (output.hidden * torch.randn_like(output.hidden)).sum(dim=-1).mean().backward()
    return trunk, stream, x.grad


def rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


NORMALISED = [(64, 2), (64, 12), (64, 48), (128, 24), (512, 2), (512, 6)]


@pytest.mark.parametrize(("width", "depth"), NORMALISED)
def test_the_stream_of_the_normalised_form_stays_bounded(width: int, depth: int) -> None:
    _, stream, _ = run(width, depth, SBLForm())
    assert all(0.5 < rms(x) < 4.0 for x in stream)


@pytest.mark.parametrize(("width", "depth"), NORMALISED)
def test_gradients_of_the_normalised_form_are_alike_in_all_blocks(width: int, depth: int) -> None:
    trunk, _, grad_x = run(width, depth, SBLForm())
    for name in ("attention.qkv", "attention.output", "moie.up", "moie.down"):
        norms = torch.stack([block.get_submodule(name).mu_weight.grad.norm() for block in trunk.blocks])
        assert norms.isfinite().all() and (norms > 0).all(), name
        assert norms.max() < 10 * norms.min(), f"{name}: {norms.tolist()}"
    assert 0 < rms(grad_x) < float("inf")


@pytest.mark.parametrize(("width", "depth"), [(64, 2), (64, 48), (256, 12)])
def test_the_reference_form_stays_finite_and_bounded(width: int, depth: int) -> None:
    trunk, stream, grad_x = run(width, depth, SBLForm(normalized=False, gate=0.0))
    assert all(0.5 < rms(x) < 4.0 for x in stream)
    assert grad_x.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in trunk.parameters())


def test_the_size_of_an_update_does_not_depend_on_the_width() -> None:
    """The rms of dL/dx of a token stays within a factor of two from width 64 to 512."""
    sizes = [rms(run(width, 2, SBLForm())[2]) for width in (64, 128, 512)]
    assert max(sizes) < 2 * min(sizes)


def test_most_neurons_fire_for_some_tokens_and_none_is_always_silent() -> None:
    trunk, _, _ = run(128, 4, SBLForm())
    activation = trunk(torch.randn(2, 64, 128), torch.arange(64).expand(2, 64)).auxiliary.activation
    assert 0.5 < activation.mean() < 0.95
    assert (activation > 0).float().mean() > 0.99


def test_a_tower_made_on_the_meta_device_initialises_like_any_other() -> None:
    config = TrunkConfig(hidden_size=16, num_layers=1, num_heads=2)
    with torch.device("meta"):
        layers = [layer for _, layer in MoIETrunk(config).sbl_layers()]
    for layer in layers:
        layer.to_empty(device="cpu").reset_parameters()
        assert layer.mu_weight.std() > 0 and (layer.gate_param == -1).all()
