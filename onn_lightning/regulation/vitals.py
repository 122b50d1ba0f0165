"""`Vitals`: what the regulators see of one optimizer step.

Notable:
- Made by the PI monitor once a step, after backward and before the optimizer moves anything, and the same on
  every rank: all sums went through one all-reduce.
- Everything is a tensor on the training device, float32 unless said otherwise; reading a number out of it
  synchronises, so regulators answer with tensors.
- Nothing here is filtered: in a broken step figures may be NaN or inf. Regulators keep what they had then.

Letters: H modalities that have a head, L blocks of the trunk, N neurons of all SBLs
(`MoIETrunk.neuron_slices`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vitals:
    """The figures of one step, over all micro-batches and ranks; all detached.

    Args:
        step: optimizer steps that the monitor has seen, this one included.
        main_loss: scalar, L_main in nats.
        tau: scalar, mean entropy of the predictions in nats; 0 where no head predicts a distribution.
        surprise: scalar, mean over the neurons of S_i.
        activation: scalar, mean over the neurons of the fraction of tokens for which they fired.
        gate: scalar, mean firing threshold.
        prior_std: scalar, standard deviation of the KL's prior.
        pi: scalar, predictive integrity of this step, in (0, 1]; the loss is over tau, or over 1 nat where no
            head predicts a distribution.
        pi_ema: scalar, its moving average.
        modalities: names of the modalities that have a head, in the order of `OmniModule.loss_weights`.
        modality_loss: [H] mean loss a target, nats; 0 for a modality without targets in this step.
        modality_tau: [H] mean entropy, nats; 0 where the head predicts no distribution or had no targets.
        modality_pi: [H] PI with the modality's own loss and tau (the step's where its head predicts no
            distribution); 1 for a modality without targets in this step.
        modality_targets: [H] number of targets in this step; 0: the modality was absent.
        layer_pi: [L] PI with the mean surprise of the block's own neurons.
        neuron_surprise: [N] S_i.
        neuron_activation: [N] fraction of the step's tokens for which the neuron fired; exactly 0 where it
            did not fire at all.
    """

    step: int
    main_loss: Tensor
    tau: Tensor
    surprise: Tensor
    activation: Tensor
    gate: Tensor
    prior_std: Tensor
    pi: Tensor
    pi_ema: Tensor
    modalities: tuple[str, ...]
    modality_loss: Tensor
    modality_tau: Tensor
    modality_pi: Tensor
    modality_targets: Tensor
    layer_pi: Tensor
    neuron_surprise: Tensor
    neuron_activation: Tensor

    @property
    def finite(self) -> Tensor:
        """Scalar bool: whether loss, tau and the surprise of every neuron are finite."""
        return torch.isfinite(self.main_loss + self.tau + self.surprise)


def is_share(figure: Tensor) -> Tensor:
    """Whether a figure lies in [0, 1], as a PI and an activation rate must; NaN does not."""
    return (figure >= 0) & (figure <= 1)
