"""The network once more in plain autograd operations, and the gate loss in two explicit passes.

Notable:
- Nothing here uses the Functions under test: products, relu, softmax and norms are written out, so that
  autograd alone makes every gradient. Only parameters and the rotary tables (tested on their own) are shared.
- `two_pass_gradients` is the definition of the gate loss: one backward for G = dL_main/dy of every SBL, then
  L_gate differentiated through the straight-through gate, with the SBL's input detached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onn_lightning.nn import DynSIHA, MoIE, MoIETrunk, SparseBayesianLinear


@dataclass(frozen=True)
class Firing:
    """One call of an SBL: the layer, its input x [..., D] and its masked output y [..., N]."""

    layer: SparseBayesianLinear
    x: Tensor
    y: Tensor


def gate_weights(layer: SparseBayesianLinear, x: Tensor) -> Tensor:
    """w = relu(x K' scale - g) of the reference formula."""
    keys = layer.mu_weight * (1 + layer.sigma_weight.exp()).log()
    return (x @ keys.T * layer.score_scale - layer.gate_param).clamp(min=0)


def plain_sbl(layer: SparseBayesianLinear, x: Tensor, firings: list[Firing]) -> Tensor:
    """y = w * (x mu' + b)."""
    y = gate_weights(layer, x) * (x @ layer.mu_weight.T + layer.mu_bias)
    firings.append(Firing(layer, x, y))
    return y


def plain_rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x)."""
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def plain_moie(moie: MoIE, x: Tensor, firings: list[Firing]) -> Tensor:
    """Two SBLs, with the normalised form's norm between them: 512e-6 is added to the sum of squares."""
    inner = plain_sbl(moie.up, x, firings)
    if moie.normalize_inner:
        inner = plain_rms_norm(inner, 512e-6 / inner.shape[-1])
    return plain_sbl(moie.down, inner, firings)


def plain_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotation as a product of complex numbers, channel i with channel i + d/2."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos.to(x.dtype), sin.to(x.dtype))
    return torch.cat((turned.real, turned.imag), dim=-1)


def plain_attention(
    attention: DynSIHA, x: Tensor, rotary: tuple[Tensor, Tensor], allowed: Tensor, firings: list[Firing]
) -> Tensor:
    """Softmax attention head by head; `allowed` [B, T, T] bool."""
    rows, length, _ = x.shape
    heads, kv_heads, width = attention.num_heads, attention.num_kv_heads, attention.head_dim
    projected = plain_sbl(attention.qkv, x, firings).view(rows, length, heads + 2 * kv_heads, width)
    mixed = []
    for head in range(heads):
        kv_head = heads + head * kv_heads // heads
        q, k, v = projected[:, :, head], projected[:, :, kv_head], projected[:, :, kv_head + kv_heads]
        if attention.normalized:
            q, k = plain_rms_norm(q), plain_rms_norm(k)
        q, k = (plain_rotary(part, rotary[0][:, 0], rotary[1][:, 0]) for part in (q, k))
        scores = (q @ k.mT / width**0.5).masked_fill(~allowed, float("-inf"))
        mixed.append(scores.softmax(dim=-1) @ v)
    joined = torch.cat(mixed, dim=-1)
    return plain_sbl(attention.output, plain_rms_norm(joined) if attention.normalized else joined, firings)


def plain_trunk(
    trunk: MoIETrunk, x: Tensor, positions: Tensor, document_ids: Tensor, firings: list[Firing]
) -> Tensor:
    """The tower, [B, T, D] -> [B, T, D]."""
    length = x.shape[1]
    causal = torch.arange(length)[:, None] >= torch.arange(length)[None, :]
    allowed = causal & (document_ids[:, :, None] == document_ids[:, None, :])
    rotary = trunk.rotary(positions)
    for block in trunk.blocks:
        x = x + plain_attention(block.attention, plain_rms_norm(x), rotary, allowed, firings)
        x = x + plain_moie(block.moie, plain_rms_norm(x), firings)
    return plain_rms_norm(x)


@dataclass(frozen=True)
class TwoPass:
    """Gradients of L_main + w_gate * L_gate by parameter name, S of every SBL call, and both losses."""

    gradients: dict[str, Tensor]
    surprises: list[Tensor]
    main_loss: Tensor
    gate_loss: Tensor


def two_pass_gradients(
    module: nn.Module, main_loss_of: Callable[[list[Firing]], Tensor], w_gate: float
) -> TwoPass:
    """Differentiate L_main + w_gate * L_gate in two explicit passes.

    Args:
        module: whose parameters are differentiated.
        main_loss_of: runs the plain network, records its SBL calls and returns L_main.
        w_gate: weight of the gate loss.
    """
    firings: list[Firing] = []
    main_loss = main_loss_of(firings)
    output_gradients = torch.autograd.grad(main_loss, [firing.y for firing in firings], retain_graph=True)

    gate_loss, surprises = main_loss.new_zeros(()), []
    for firing, gradient in zip(firings, output_gradients, strict=True):
        gradient = gradient.flatten(0, -2)  # [M, N]
        surprise = gradient.square().sum(dim=0).sqrt()  # [N]
        surprises.append(surprise)
        w = gate_weights(firing.layer, firing.x.detach().flatten(0, -2))  # live in keys and gate alone
        slope = torch.where(
            surprise > 0, gradient.square() / surprise, 0.0
        )  # dS_i / dw_ti; relu drops silent ones
        through_gate = surprise + (slope * (w - w.detach())).sum(
            dim=0
        )  # S in value, straight-through in gradient
        share = through_gate / surprise.sum()
        gate_loss = gate_loss - (share * torch.where(share > 0, share, 1.0).log()).sum()

    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(main_loss + w_gate * gate_loss, parameters, materialize_grads=True)
    return TwoPass(
        dict(zip(names, gradients, strict=True)), surprises, main_loss.detach(), gate_loss.detach()
    )


def relative_error(measured: Tensor, expected: Tensor) -> float:
    """|measured - expected| / |expected|, over the whole tensor."""
    difference, size = (measured - expected).detach().norm(), expected.detach().norm()
    return float(difference / size.clamp_min(torch.finfo(size.dtype).tiny))


def assert_same_gradients(module: nn.Module, expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Every parameter's `.grad` equals the expected one."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        error = relative_error(parameter.grad, expected[name])
        assert error < tolerance, f"{name}: relative error {error:.2e}"


def randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Move every parameter off its initial value, so that no symmetry hides an error."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
