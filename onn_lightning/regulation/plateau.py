"""`Plateau`: whether the instance has stopped learning while its neurons are at work - time to grow.

With x the observed figure, m its moving average, a the moving average of the activation, P = `patience` and
d = `min_improvement` * |m[t-P]|, the rule fires in step t if, all of them at once,

    max(m[t-P], ..., m[t]) - m[t] < d     at no moment of the last P steps was it worse by more than that,
    m[t] - m[t-P] < d                     nor has it become worse by as much: a new world is no plateau,
    a[t] > min_activation                 few neurons are idle: there is hardly one left to recruit,
    t - (step of the last growth, or 0) >= cooldown.

Notable:
- The window begins anew after every growth, so at least P + 1 steps lie between two growths.
- A step whose figures are not finite is no step: it leaves the state as it was, and the rule does not fire.
- All state is in buffers on the training device, and nothing is read from it: the answer is a tensor.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from onn_lightning.regulation.moving_average import MovingAverage
from onn_lightning.regulation.vitals import Vitals


class Plateau(nn.Module):
    """Fires on a plateau at high activation; the formula stands at the top of this file.

    Args:
        figure: what is observed: "main_loss" (L_main), or "pi", which is observed as -log PI.
        patience: P, steps.
        min_improvement: relative to the figure; an improvement of less than this over P steps is none.
        min_activation: fraction of tokens for which a neuron fires on average, above which the instance is
            at capacity.
        neurons: whose activation counts: "feed_forward" (those of `moie.up`, the kind that growth adds) or
            "all".
        cooldown: steps after the start and after a growth in which the rule does not fire.
        half_life: of both moving averages, steps.
    Raises:
        ValueError: if a number is out of range.
    """

    window: Tensor
    seen: Tensor
    since_growth: Tensor
    observed: Tensor | None

    def __init__(
        self,
        figure: Literal["main_loss", "pi"] = "main_loss",
        patience: int = 500,
        min_improvement: float = 0.005,
        min_activation: float = 0.2,
        neurons: Literal["feed_forward", "all"] = "feed_forward",
        cooldown: int = 1000,
        half_life: float = 50.0,
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("patience", patience, 1, float("inf")),
            ("min_improvement", min_improvement, 0, 1),
            ("min_activation", min_activation, 0, 1),
            ("cooldown", cooldown, 0, float("inf")),
        ):
            if not low <= value <= high:
                raise ValueError(f"Plateau: {name} is {value}, it must be from {low} to {high}")
        if figure not in ("main_loss", "pi") or neurons not in ("feed_forward", "all"):
            raise ValueError(
                f"Plateau: figure is '{figure}', it must be main_loss or pi; neurons is '{neurons}', it must "
                "be feed_forward or all"
            )
        self.figure, self.neurons = figure, neurons
        self.patience, self.cooldown = patience, cooldown
        self.min_improvement, self.min_activation = min_improvement, min_activation
        self.average = MovingAverage(half_life)
        self.activation = MovingAverage(half_life)
        self.register_buffer("window", torch.zeros(patience + 1))  # m of the last P + 1 steps, in a ring
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("since_growth", torch.zeros((), dtype=torch.int64))
        self.register_buffer("observed", None, persistent=False)

    def observe(self, feed_forward: Tensor) -> None:
        """Say which neurons are those of the feed-forwards; needed before the first step of every start.

        Args:
            feed_forward: [N] bool, in the order of `Vitals.neuron_activation`.
        """
        self.observed = feed_forward.to(self.window.device)

    def restart(self) -> None:
        """Forget everything: the instance has grown."""
        for buffer in (*self.average.buffers(), *self.activation.buffers(), self.window):
            buffer.zero_()
        self.seen.zero_()
        self.since_growth.zero_()

    @torch.no_grad()
    def forward(self, vitals: Vitals) -> Tensor:
        """Take one step in.

        Returns:
            Scalar bool: grow now.
        Raises:
            ValueError: if the neurons are not known, see `observe`.
        """
        figure = vitals.main_loss if self.figure == "main_loss" else -torch.log(vitals.pi)
        activation = self._activation_of(vitals)
        valid = torch.isfinite(figure + activation)
        now, activation = self.average.update(figure, valid), self.activation.update(activation, valid)

        place = (self.seen % len(self.window)).view(1)
        kept = self.window.gather(0, place)
        self.window.scatter_(0, place, torch.where(valid, now, kept))
        self.seen += valid
        self.since_growth += valid
        oldest = self.window.gather(0, (self.seen % len(self.window)).view(1)).squeeze(0)
        margin = self.min_improvement * oldest.abs()
        return (
            valid
            & (self.seen >= len(self.window))
            & (self.since_growth >= self.cooldown)
            & (self.window.max() - now < margin)
            & (now - oldest < margin)
            & (activation > self.min_activation)
        )

    def _activation_of(self, vitals: Vitals) -> Tensor:
        if self.neurons == "all":
            return vitals.activation
        if self.observed is None:
            raise ValueError("Plateau: call `observe` first; it says which neurons are the feed-forwards'")
        observed = self.observed.to(vitals.neuron_activation.dtype)
        return torch.dot(vitals.neuron_activation, observed) / observed.sum().clamp_min(1)
