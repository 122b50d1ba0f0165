"""Sparse Bayesian Linear: a linear layer whose neurons fire, and the one-pass gate loss.

    K = mu_weight * softplus(sigma_weight)
    w = relu(x @ K.T * scale - gate_param)
    y = w * (x @ mu_weight.T + mu_bias)

Notable:
- One GEMM forward and two backward: the rows of K and mu are stacked, so scores and values come out
  of a single [tokens, in] x [in, 2 * out] product. There is no loop over neurons or experts.
- The gradient of the gate loss (Surprise Minimization Loss) is injected inside the ONE backward
  pass: in `_SparseBayesianFunction.backward`, G = dL_main/dy is at hand, and with it the surprise
  S_i = ||G_:i||_2 of every neuron. No retain_graph, no second backward, no double backward.
- The injection reaches the keys and the gate only, never x: otherwise the injections of upper layers would
  contaminate the surprise of lower ones.
- The Function returns a zero-valued scalar, the gate handle. The step adds w_gate * sum(handles) to
  its loss, so the weight and any loss scale arrive in backward as an ordinary gradient; a handle
  that nobody uses injects nothing.
- S leaves as the gradient of a plain leaf tensor that the caller passes in, without hooks or
  other Python side effects, so torch.compile and gradient checkpointing see ordinary autograd.
- Which neurons fire can be handed out as packed bits and handed in again: a recomputation then fires the
  same neurons, whatever rounding makes of its scores (see `nn/recompute.py`).

Shapes: M tokens (all leading dimensions flattened), D = in_features, N = out_features (neurons).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onn_lightning.nn.packed_bits import pack_bits, unpack_bits

GatherSurprise = Callable[[Tensor], Tensor] | None
"""Makes S of all neurons of a layer out of S of those computed here; None: all are."""

SumSquares = Callable[[Tensor], Tensor] | None
"""Adds up S^2 of the same neurons over all who compute other tokens of the same batch; None: all are here."""


@dataclass(frozen=True)
class SBLOutput:
    """What an observed SBL returns.

    Args:
        output: [..., N] masked output y.
        gate_handle: scalar 0; add w_gate * gate_handle to the loss to train the gates.
        surprise: [N]; after backward its `.grad` (or that of the leaf it is a part of) holds S.
        activation: [N] fraction of the tokens for which each neuron fired; None where that was handed in.
        fired: [ceil(M / 8), N] packed bits, set where a neuron fired; None unless asked for.
    """

    output: Tensor
    gate_handle: Tensor
    surprise: Tensor
    activation: Tensor | None
    fired: Tensor | None


class _SparseBayesianFunction(torch.autograd.Function):
    """y = relu(x K' - g) * (x mu' + b) with the gate loss injected into its backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        surprise: Tensor,
        gather_surprise: GatherSurprise,
        sum_squares: SumSquares,
        fired: Tensor | None,
        pack_fired: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """x [M, D], weight [2N, D] = (scaled keys, mu), bias [2N] = (-gate, mu_bias), surprise [N].

        With `gather_surprise` N are the neurons computed here, and surprise is as long as what it returns.
        `fired`, packed bits, decides who fires in place of the scores; `pack_fired` asks for such bits.
        """
        pre = F.linear(x, weight, bias)  # [M, 2N]
        scores, values = pre.chunk(2, dim=-1)
        activation = packed = None
        if fired is None:
            y = F.relu(scores).mul_(values)
            decisions = torch.gt(scores, 0).to(torch.uint8)
            activation = decisions.sum(dim=0, dtype=torch.int32).to(surprise.dtype) / len(x)
            packed = pack_bits(decisions) if pack_fired else None
        else:  # a score is above 0 where its neuron fired and 0 elsewhere: all that follows asks for no more
            smallest = torch.finfo(scores.dtype).tiny
            y = scores.clamp_(min=smallest).mul_(unpack_bits(fired, len(x))) * values
        ctx.save_for_backward(x, weight, pre)
        ctx.gather_surprise, ctx.sum_squares = gather_surprise, sum_squares
        ctx.mark_non_differentiable(*(made for made in (activation, packed) if made is not None))
        ctx.set_materialize_grads(False)
        return y, surprise.new_zeros(()), activation, packed

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_y: Tensor | None, grad_handle: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return (None,) * 8
        x, weight, pre = ctx.saved_tensors
        scores, values = pre.chunk(2, dim=-1)
        surprise = all_surprise = squares = None
        if grad_handle is not None or ctx.needs_input_grad[3]:
            statistics_type = torch.promote_types(grad_y.dtype, torch.float32)
            surprise = torch.linalg.vector_norm(grad_y, dim=0, dtype=statistics_type)  # [N]
            all_surprise = surprise if ctx.gather_surprise is None else ctx.gather_surprise(surprise)
            if ctx.sum_squares is not None and grad_handle is not None:
                squares = ctx.sum_squares(surprise.square())  # on its way while the products below are made
        fired_grad = torch.ops.aten.threshold_backward(grad_y, scores, 0)  # G where the neuron fired
        grad_pre = _times_halves(fired_grad, values, scores)  # [M, 2N]
        grad_x = grad_pre @ weight if ctx.needs_input_grad[0] else None  # before the injection: x stays clean

        if grad_handle is not None and surprise is not None and all_surprise is not None:
            # L_gate = sum_i -p_i log p_i, p_i = S_i / stopgrad(sum_j S_j),
            # dS_i/dw_ti = G_ti^2 / S_i where the neuron fired
            if squares is not None:  # the gate loss is that of the whole batch, and so are its p and S
                surprise = squares.sqrt()
                whole = surprise if ctx.gather_surprise is None else ctx.gather_surprise(surprise)
                total = whole.sum()
            else:
                total = all_surprise.sum()
            p = surprise / total
            pull = torch.where(surprise > 0, (-p.log() - 1) / (total * surprise), 0.0) * grad_handle  # [N]
            largest = torch.finfo(grad_y.dtype).max  # where S underflows G^2 is 0, and 0 * inf would be NaN
            fired_grad.mul_(pull.clamp(-largest, largest).to(grad_y.dtype))
            grad_pre.chunk(2, dim=-1)[0].addcmul_(fired_grad, grad_y)
        grad_weight = grad_pre.mT @ x if ctx.needs_input_grad[1] else None
        grad_bias = grad_pre.sum(dim=0) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[3]:
            all_surprise = None
        return grad_x, grad_weight, grad_bias, all_surprise, None, None, None, None


def _times_halves(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """[M, N] each -> [M, 2N]: (x * first, x * second), without a temporary."""
    if torch.compiler.is_compiling():  # cannot trace writing into parts of a tensor, and fuses this as well
        return torch.cat((x * first, x * second), dim=-1)
    products = x.new_empty(x.shape[0], 2 * x.shape[1])
    for factor, half in zip((first, second), products.chunk(2, dim=-1), strict=True):
        torch.mul(x, factor, out=half)
    return products


class SparseBayesianLinear(nn.Module):
    """Linear layer of N neurons with mean, uncertainty and firing threshold.

    Args:
        in_features: D.
        out_features: N.
        score_scale: factor on the scores; None: 1 / sqrt(D), the reference form.
        gate: initial threshold of every neuron.
        sigma: initial uncertainty, > 0 (the parameter holds its inverse softplus).
        mu_std: initial spread of the mean weights; None: 1 / sqrt(D), rows of unit norm.
    Parameters:
        mu_weight [N, D], sigma_weight [N, D] (raw; sigma = softplus), gate_param [N], mu_bias [N].
    Source: ours, after the published experiments; the names are those of their checkpoints.
    """

    _gather_surprise: GatherSurprise = None
    sum_squares: SumSquares = None
    """Makes the gate loss that of a batch of which others compute parts; a leaf gets S of the tokens here.

    Where gradients are averaged over those others, `gate_handle` has to be weighted by their number.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        score_scale: float | None = None,
        gate: float = 0.0,
        sigma: float = 1.0,
        mu_std: float | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.score_scale = in_features**-0.5 if score_scale is None else score_scale
        self._initial = (gate, sigma, in_features**-0.5 if mu_std is None else mu_std)
        self.mu_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.sigma_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.gate_param = nn.Parameter(torch.empty(out_features))
        self.mu_bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise; called again after materialisation from the meta device."""
        gate, sigma, mu_std = self._initial
        nn.init.normal_(self.mu_weight, std=mu_std)
        nn.init.constant_(self.sigma_weight, math.log(math.expm1(sigma)))
        nn.init.constant_(self.gate_param, gate)
        nn.init.zeros_(self.mu_bias)

    def _neurons_here(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mu_weight, sigma_weight, gate_param and mu_bias of the neurons that `observe` computes."""
        return self.mu_weight, self.sigma_weight, self.gate_param, self.mu_bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> masked output [..., N]."""
        return self.observe(x).output

    def observe(
        self,
        x: Tensor,
        surprise: Tensor | None = None,
        fired: Tensor | None = None,
        pack_fired: bool = False,
    ) -> SBLOutput:
        """[..., D] -> the masked output with what regulation needs to see of it.

        Under autocast the products run in autocast's type; keys are formed and norms are summed in float32.

        Args:
            x: [..., D].
            surprise: [N] zeros that require grad, a leaf or a part of one, which receives S as its
                gradient; None: a leaf is made.
            fired: packed bits of an earlier call with the same x: the same neurons fire again.
            pack_fired: hand such bits out.
        """
        if surprise is None:
            statistics_type = torch.promote_types(self.mu_weight.dtype, torch.float32)
            surprise = torch.zeros(self.out_features, dtype=statistics_type, device=x.device)
            surprise.requires_grad_(torch.is_grad_enabled())
        y, handle, activation, packed = _SparseBayesianFunction.apply(
            *self._operands(x), surprise, self._gather_surprise, self.sum_squares, fired, pack_fired
        )
        output = y.view(*x.shape[:-1], y.shape[-1])
        return SBLOutput(output, handle, surprise, activation, packed)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the one product: tokens [M, D], stacked keys and means [2N, D], stacked biases [2N]."""
        mu_weight, sigma_weight, gate_param, mu_bias = self._neurons_here()
        weight = torch.cat((mu_weight * F.softplus(sigma_weight) * self.score_scale, mu_weight))
        bias = torch.cat((-gate_param, mu_bias))
        if torch.is_autocast_enabled(x.device.type):
            compute = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(compute), weight.to(compute), bias.to(compute)
        return x.reshape(-1, x.shape[-1]), weight, bias


class SBLObserver:
    """Calls the SBLs of one pass over a part of the network in their order and keeps what they tell.

    A gradient checkpoint within that part calls an SBL again, in backward: it then gets the leaf of its first
    call, and nothing is added to the observations.

    Args:
        surprise: parts of one leaf, [N] each, in the order in which the SBLs are called; None: the
            SBLs make leaves of their own.
        fired: which neurons fired, packed bits of each SBL in that order: an empty list is filled, a full one
            decides who fires now; None: nobody asks.
    """

    def __init__(self, surprise: Sequence[Tensor] | None = None, fired: list[Tensor] | None = None) -> None:
        self._surprise = surprise
        self._decided: list[Tensor] | None = fired or None
        self._record: list[Tensor] | None = None if fired else fired
        self._places: dict[SparseBayesianLinear, int] = {}
        self.gate_handles: list[Tensor] = []
        self.activations: list[Tensor] = []

    def __call__(self, layer: SparseBayesianLinear, x: Tensor) -> Tensor:
        """[..., D] -> masked output [..., N]."""
        place = self._places.setdefault(layer, len(self._places))
        seen = layer.observe(
            x,
            surprise=None if self._surprise is None else self._surprise[place],
            fired=None if self._decided is None else self._decided[place],
            pack_fired=self._record is not None,
        )
        if place == len(self.gate_handles):
            self.gate_handles.append(seen.gate_handle)
            if seen.activation is not None:
                self.activations.append(seen.activation)
            if self._record is not None and seen.fired is not None:
                self._record.append(seen.fired)
        return seen.output


@dataclass(frozen=True)
class SBLForm:
    """Which form the SBLs of a network take, and their initial values.

    Args:
        normalized: scores without 1 / sqrt(D), an RMSNorm on the input of every SBL and QK-norm; False:
            the reference form of the published experiments.
        gate: initial threshold g.
        sigma: initial uncertainty.
    """

    normalized: bool = True
    gate: float = -1.0
    sigma: float = 1.0

    def build(self, in_features: int, out_features: int, weight_scale: float = 1.0) -> SparseBayesianLinear:
        """An SBL of this form; `weight_scale` multiplies the initial spread of its mean weights."""
        return SparseBayesianLinear(
            in_features,
            out_features,
            score_scale=1.0 if self.normalized else None,
            gate=self.gate,
            sigma=self.sigma,
            mu_std=weight_scale * in_features**-0.5,
        )
