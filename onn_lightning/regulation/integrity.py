"""`Integrity`: predictive integrity with constants that are numbers or read from the system itself.

Notable:
- The formula is `nn.loss.predictive_integrity`; here is only where alpha and gamma come from.
- alpha "activation_rate": the share of neurons that fire, in [0, 1]. gamma "gate_threshold": softplus of the
  mean firing threshold, which starts at -1: PI has to stay in (0, 1].
- Constants that are read are tensors: nothing is synchronised for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

from onn_lightning.nn.loss import predictive_integrity

Alpha = Literal["activation_rate"] | float  # the word first: that is what a mistyped one is told
Gamma = Literal["gate_threshold"] | float


@dataclass(frozen=True)
class Integrity:
    """PI = exp(-alpha * (L_main / tau + gamma * mean surprise)).

    Args:
        alpha: how steep; a number >= 0 or "activation_rate".
        gamma: how much surprise counts; a number >= 0 or "gate_threshold".
    Raises:
        ValueError: for anything else.
    """

    alpha: Alpha = 1.0
    gamma: Gamma = 1.0

    def __post_init__(self) -> None:
        for name, value, word in (
            ("alpha", self.alpha, "activation_rate"),
            ("gamma", self.gamma, "gate_threshold"),
        ):
            if value == word:
                continue
            if isinstance(value, str) or not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"pi_{name} is {value!r}: it must be a finite number of at least 0, or '{word}'"
                )

    def __call__(
        self, main_loss: Tensor, tau: Tensor, surprise: Tensor, activation: Tensor, gate: Tensor
    ) -> Tensor:
        """PI of one or of several figures; all tensors broadcast against each other.

        Args:
            main_loss: L_main, nats.
            tau: entropy of the predictions, nats.
            surprise: mean S over the neurons.
            activation: scalar, activation rate.
            gate: scalar, mean firing threshold.
        """
        alpha = activation if isinstance(self.alpha, str) else self.alpha
        gamma = softplus(gate) if isinstance(self.gamma, str) else self.gamma
        return predictive_integrity(main_loss, tau, surprise, alpha, gamma)
