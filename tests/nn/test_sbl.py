"""The Sparse Bayesian Linear layer: its formula, and its gradients against the two-pass reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reference import (
    Firing,
    assert_same_gradients,
    gate_weights,
    plain_sbl,
    randomize,
    relative_error,
    two_pass_gradients,
)
from torch import Tensor, nn

from onn_lightning.nn import SBLForm, SparseBayesianLinear


def random_layer(in_features: int, out_features: int, seed: int = 0) -> SparseBayesianLinear:
    torch.manual_seed(seed)
    layer = SparseBayesianLinear(in_features, out_features).double()
    randomize(layer, torch.Generator().manual_seed(seed))
    return layer


class Stack(nn.Module):
    """SBLs one after another, with a residual where widths allow, so that gradients meet on two paths."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SparseBayesianLinear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        handles, surprises = [], []
        for layer in self.layers:
            seen = layer.observe(x)
            handles.append(seen.gate_handle)
            surprises.append(seen.surprise)
            x = x + seen.output if x.shape[-1] == layer.out_features else seen.output
        return x, torch.stack(handles).sum(), surprises

    def plain(self, x: Tensor, firings: list[Firing]) -> Tensor:
        for layer in self.layers:
            y = plain_sbl(layer, x, firings)
            x = x + y if x.shape[-1] == layer.out_features else y
        return x


def random_stack(seed: int = 0) -> tuple[Stack, Tensor, Tensor]:
    """A stack, its input [2, 7, 6] and a target [2, 7, 5], all float64."""
    generator = torch.manual_seed(seed)
    stack = Stack([6, 9, 9, 5]).double()
    randomize(stack, generator)
    x = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    return stack, x, torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    in_features=st.integers(1, 9),
    out_features=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_forward_equals_the_reference_formula_for_any_leading_dimensions(
    leading: list[int], in_features: int, out_features: int, seed: int
) -> None:
    layer = random_layer(in_features, out_features, seed)
    x = torch.randn(*leading, in_features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keys = layer.mu_weight * torch.log1p(layer.sigma_weight.exp())
    w = torch.relu(x @ keys.T / in_features**0.5 - layer.gate_param)
    expected = w * (x @ layer.mu_weight.T + layer.mu_bias)
    assert layer(x).shape == (*leading, out_features)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_parameters_have_the_published_names_and_shapes() -> None:
    shapes = {name: tuple(p.shape) for name, p in SparseBayesianLinear(3, 5).named_parameters()}
    assert shapes == {"mu_weight": (5, 3), "sigma_weight": (5, 3), "gate_param": (5,), "mu_bias": (5,)}


def test_the_normalised_form_scores_without_the_square_root_of_the_width() -> None:
    layer = SBLForm(normalized=True, gate=-1.0, sigma=0.5).build(64, 32)
    assert layer.score_scale == 1.0
    torch.testing.assert_close(nn.functional.softplus(layer.sigma_weight), torch.full((32, 64), 0.5))
    assert (layer.gate_param == -1).all()
    assert SBLForm(normalized=False).build(64, 32).score_scale == 64**-0.5


def test_activation_is_the_fraction_of_tokens_for_which_a_neuron_fired() -> None:
    layer = random_layer(4, 6)
    x = torch.randn(3, 11, 4, dtype=torch.float64)
    expected = (gate_weights(layer, x) > 0).double().flatten(0, 1).mean(dim=0)
    torch.testing.assert_close(layer.observe(x).activation, expected)


def test_one_pass_gradients_equal_the_two_pass_reference_for_one_layer() -> None:
    layer = random_layer(5, 8)
    x = torch.randn(13, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(13, 8, dtype=torch.float64)
    reference = two_pass_gradients(
        layer, lambda seen: (plain_sbl(layer, x, seen) - target).square().mean(), 0.7
    )
    seen = layer.observe(x)
    ((seen.output - target).square().mean() + 0.7 * seen.gate_handle).backward()
    assert_same_gradients(layer, reference.gradients)
    assert relative_error(seen.surprise.grad, reference.surprises[0]) < 1e-12


@pytest.mark.parametrize("w_gate", [0.0, 0.003, 2.0])
def test_one_pass_gradients_equal_the_two_pass_reference_for_a_stack(w_gate: float) -> None:
    stack, x, target = random_stack()
    reference = two_pass_gradients(stack, lambda seen: (stack.plain(x, seen) - target).square().sum(), w_gate)
    output, handle, surprises = stack(x)
    ((output - target).square().sum() + w_gate * handle).backward()
    assert_same_gradients(stack, reference.gradients)
    for measured, expected in zip(surprises, reference.surprises, strict=True):
        assert relative_error(measured.grad, expected) < 1e-12


def test_the_gate_loss_reaches_sigma_and_gate_and_leaves_mean_bias_alone() -> None:
    stack, x, target = random_stack()
    gradients = []
    for w_gate in (0.0, 1.0):
        stack.zero_grad()
        output, handle, _ = stack(x)
        ((output - target).square().mean() + w_gate * handle).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in stack.named_parameters()})
    for name, without in gradients[0].items():
        moved = (gradients[1][name] - without).norm()
        if name.endswith("mu_bias"):
            assert moved == 0
        else:
            assert moved > 1e-6 * without.norm() > 0, name


def test_closing_a_gate_is_what_the_gate_loss_asks_of_a_surprised_neuron() -> None:
    """dL_gate/dw >= 0 for shares below 1/e: the threshold's gradient, its negative, lets g rise."""
    layer = random_layer(6, 40)
    seen = layer.observe(torch.randn(50, 6, dtype=torch.float64))
    target = torch.randn(50, 40, dtype=torch.float64)
    ((seen.output - target).square().mean()).backward(retain_graph=True)
    without = layer.gate_param.grad.clone()
    share = seen.surprise.grad / seen.surprise.grad.sum()
    layer.zero_grad()
    ((seen.output - target).square().mean() + seen.gate_handle).backward()
    injected = layer.gate_param.grad - without
    assert (share < 1 / torch.e).all()
    assert (injected <= 1e-12).all() and (injected < -1e-6).any()


def test_an_unused_handle_injects_nothing() -> None:
    stack, x, target = random_stack()
    expected = torch.autograd.grad(
        (stack.plain(x, []) - target).square().mean(), list(stack.parameters()), materialize_grads=True
    )
    output, _, _ = stack(x)
    (output - target).square().mean().backward()
    assert_same_gradients(stack, dict(zip(dict(stack.named_parameters()), expected, strict=True)))


def test_injection_above_does_not_contaminate_the_surprise_below_nor_the_input() -> None:
    stack, x, target = random_stack()
    x.requires_grad_()
    seen = []
    for w_gate in (0.0, 100.0):
        x.grad = None
        output, handle, surprises = stack(x)
        ((output - target).square().mean() + w_gate * handle).backward()
        seen.append([x.grad.clone(), *(surprise.grad for surprise in surprises)])
    for without, with_gate in zip(*seen, strict=True):
        assert torch.equal(without, with_gate)


def test_gradients_are_right_when_the_input_needs_none() -> None:
    layer = random_layer(5, 8)
    x = torch.randn(13, 5, dtype=torch.float64)
    reference = two_pass_gradients(layer, lambda seen: plain_sbl(layer, x, seen).sin().sum(), 0.1)
    seen = layer.observe(x)
    (seen.output.sin().sum() + 0.1 * seen.gate_handle).backward()
    assert_same_gradients(layer, reference.gradients)


def test_gradients_of_a_strided_upstream_gradient_are_right() -> None:
    """A transposed or expanded dL/dy, as attention hands back, is read correctly."""
    layer = random_layer(5, 8)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    weight = torch.randn(8, 4, dtype=torch.float64)
    reference = two_pass_gradients(
        layer,
        lambda seen: (plain_sbl(layer, x, seen).transpose(1, 2) * weight).sum(dim=0).square().sum(),
        0.1,
    )
    seen = layer.observe(x)
    ((seen.output.transpose(1, 2) * weight).sum(dim=0).square().sum() + 0.1 * seen.gate_handle).backward()
    assert_same_gradients(layer, reference.gradients)
    layer.zero_grad()
    expected = torch.autograd.grad(plain_sbl(layer, x, []).sum(), layer.mu_weight)[0]
    layer(x).sum().backward()  # dL/dy is one expanded number
    assert relative_error(layer.mu_weight.grad, expected) < 1e-12


def test_a_loss_scale_scales_all_gradients_alike() -> None:
    stack, x, target = random_stack()
    reference = two_pass_gradients(stack, lambda seen: (stack.plain(x, seen) - target).square().mean(), 0.3)
    output, handle, surprises = stack(x)
    (1024 * ((output - target).square().mean() + 0.3 * handle)).backward()
    for parameter in stack.parameters():
        parameter.grad /= 1024
    assert_same_gradients(stack, reference.gradients)
    assert relative_error(surprises[0].grad / 1024, reference.surprises[0]) < 1e-12


@pytest.mark.parametrize("exponent", range(-30, 20, 2))
def test_gradients_of_any_size_stay_finite_in_float32(exponent: int) -> None:
    """S * sum S underflows long before S does; what is then too small to inject is left out."""
    torch.manual_seed(0)
    layer, x = SparseBayesianLinear(8, 16), torch.randn(32, 8)
    seen = layer.observe(x)
    (10.0**exponent * (seen.output.square().mean() + 0.1 * seen.gate_handle)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_accumulated_micro_batches_sum_their_two_pass_gradients() -> None:
    stack, x, target = random_stack()
    expected: dict[str, Tensor] = {}
    for part in range(2):
        xs, targets = x[part], target[part]
        reference = two_pass_gradients(
            stack, lambda seen, xs=xs, ts=targets: (stack.plain(xs, seen) - ts).square().mean() / 2, 0.3 / 2
        )
        for name, gradient in reference.gradients.items():
            expected[name] = expected.get(name, 0) + gradient
        output, handle, _ = stack(xs)
        (((output - targets).square().mean() + 0.3 * handle) / 2).backward()
    assert_same_gradients(stack, expected)


def test_a_layer_called_twice_takes_the_surprise_of_each_call_by_itself() -> None:
    layer = random_layer(6, 6)
    x = torch.randn(9, 6, dtype=torch.float64)

    def plain(seen: list[Firing]) -> Tensor:
        return plain_sbl(layer, plain_sbl(layer, x, seen), seen).square().mean()

    reference = two_pass_gradients(layer, plain, 0.5)
    first = layer.observe(x)
    second = layer.observe(first.output)
    (second.output.square().mean() + 0.5 * (first.gate_handle + second.gate_handle)).backward()
    assert_same_gradients(layer, reference.gradients)


def test_a_silent_layer_gives_finite_gradients() -> None:
    layer = random_layer(4, 5)
    with torch.no_grad():
        layer.gate_param.fill_(1e6)
    seen = layer.observe(torch.randn(7, 4, dtype=torch.float64))
    (seen.output.sum() + seen.gate_handle).backward()
    assert (seen.output == 0).all() and (seen.activation == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_a_batch_without_upstream_gradient_gives_finite_gradients() -> None:
    layer = random_layer(4, 5)
    seen = layer.observe(torch.randn(7, 4, dtype=torch.float64))
    (0.0 * seen.output.sum() + seen.gate_handle).backward()
    assert all((parameter.grad == 0).all() for parameter in layer.parameters())


def test_bfloat16_autocast_stays_near_float32() -> None:
    torch.manual_seed(0)
    layer = SBLForm().build(16, 24)
    x = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        seen = layer.observe(x)
        loss = seen.output.float().square().mean() + 0.01 * seen.gate_handle
    loss.backward()
    assert seen.output.dtype == torch.bfloat16
    assert seen.surprise.grad.dtype == torch.float32
    assert relative_error(seen.output.float(), layer(x)) < 0.02
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_forward_alone_needs_no_graph() -> None:
    layer = random_layer(4, 5)
    with torch.no_grad():
        assert not layer(torch.randn(2, 4, dtype=torch.float64)).requires_grad


@pytest.mark.slow
def test_aot_tracing_by_torch_compile_keeps_the_injection() -> None:
    stack, x, target = random_stack()
    reference = two_pass_gradients(stack, lambda seen: (stack.plain(x, seen) - target).square().mean(), 0.3)
    surprise = [
        torch.zeros(layer.out_features, dtype=torch.float64, requires_grad=True) for layer in stack.layers
    ]

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        handles = x.new_zeros(())
        for layer, leaf in zip(stack.layers, surprise, strict=True):
            seen = layer.observe(x, leaf)
            handles = handles + seen.gate_handle
            x = x + seen.output if x.shape[-1] == layer.out_features else seen.output
        return x, handles

    output, handle = torch.compile(forward, backend="aot_eager", fullgraph=False)(x)
    ((output - target).square().mean() + 0.3 * handle).backward()
    assert_same_gradients(stack, reference.gradients)
    assert relative_error(surprise[0].grad, reference.surprises[0]) < 1e-12
