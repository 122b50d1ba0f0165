"""The figures of one optimizer step, out of its sums.

Notable:
- All of it follows from sums that are the same on every rank and from the network itself, by the same
  operations: every rank has the same numbers, bit for bit.
- A loss without a distribution beside it has no tau. It is over the step's tau where another head predicts a
  distribution, and over 1 nat, taken as it is, where none does.
- Nothing is read out of a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onn_lightning.regulation.integrity import Integrity
from onn_lightning.regulation.step_sums import StepTotals
from onn_lightning.regulation.vitals import Vitals


@dataclass(frozen=True)
class Measured:
    """The network that is measured; the same in all steps, so that nobody has to walk through it in each.

    Args:
        modalities: names of the H modalities that have a head.
        gates: firing thresholds of every SBL, as they are at any time.
        block_sizes: neurons of each of the L blocks, in the order of the neurons.
        integrity: PI.
        prior_std_range: bounds (low, high) within which the KL's prior_std follows tau.
    """

    modalities: tuple[str, ...]
    gates: tuple[Tensor, ...]
    block_sizes: tuple[int, ...]
    integrity: Integrity
    prior_std_range: tuple[float, float]

    @property
    def mean_gate(self) -> Tensor:
        """Scalar, mean firing threshold of all neurons."""
        return torch.cat(self.gates).detach().mean()


def measure(totals: StepTotals, measured: Measured, loss_weights: Tensor, step: int) -> Vitals:
    """Make the vitals of a step; their `pi_ema` is the PI of this step alone.

    Args:
        totals: the step's sums.
        measured: the network.
        loss_weights: [H] weights of the modalities in L_main.
        step: number of the step.
    """
    gate = measured.mean_gate
    neuron_activation = totals.fired / totals.tokens
    activation, surprise = neuron_activation.mean(), totals.surprise.mean()
    modality_loss = totals.loss_sums / totals.targets.clamp_min(1)
    modality_tau = totals.entropy_sums / totals.predictions.clamp_min(1)
    main_loss = (loss_weights * modality_loss).sum()
    predictions = totals.predictions.sum()
    tau = totals.entropy_sums.sum() / predictions.clamp_min(1)

    unit = torch.where(predictions > 0, tau, 1.0)
    modality_unit = torch.where(totals.predictions > 0, modality_tau, unit)
    modalities, blocks = len(measured.modalities), len(measured.block_sizes)
    one = main_loss[None]
    integrity = measured.integrity(  # of the whole, of every modality, of every block
        torch.cat((one, modality_loss, one.expand(blocks))),
        torch.cat((unit[None], modality_unit, unit.expand(blocks))),
        torch.cat((surprise.expand(1 + modalities), _block_means(totals.surprise, measured.block_sizes))),
        activation,
        gate,
    )
    pi, modality_pi, layer_pi = integrity.split((1, modalities, blocks))
    return Vitals(
        step=step,
        main_loss=main_loss,
        tau=tau,
        surprise=surprise,
        activation=activation,
        gate=gate,
        prior_std=tau.clamp(*measured.prior_std_range),
        pi=pi[0],
        pi_ema=pi[0],
        modalities=measured.modalities,
        modality_loss=modality_loss,
        modality_tau=modality_tau,
        modality_pi=torch.where(totals.targets > 0, modality_pi, 1.0),
        modality_targets=totals.targets,
        layer_pi=layer_pi,
        neuron_surprise=totals.surprise,
        neuron_activation=neuron_activation,
    )


def _block_means(neurons: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """[N] -> [L] mean over the neurons of every block."""
    if len(set(sizes)) == 1:  # one kernel instead of one a block
        return neurons.view(len(sizes), -1).mean(dim=1)
    return torch.stack([part.mean() for part in neurons.split(sizes)])


def entropy_of_shares(surprise: Tensor) -> Tensor:
    """Value of the gate loss of one SBL: the entropy of its neurons' shares of its surprise, nats.

    Args:
        surprise: [neurons of the SBL] S_i.
    """
    shares = surprise / surprise.sum().clamp_min(torch.finfo(surprise.dtype).tiny)
    return torch.special.entr(shares).sum()
