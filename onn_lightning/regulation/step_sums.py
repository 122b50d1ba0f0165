"""What micro-batches leave behind, and its sum over one optimizer step and over all ranks.

Notable:
- One big batch, the same tokens in several micro-batches, on several ranks or under a loss scale give the
  same figures: means are taken once, at the end, out of sums. Gradients are those of training, whose loss is
  the MEAN over n micro-batches and ranks: S_i^2 is the sum of the parts' S_i^2, over n^2. (Parts with
  unequally many targets weigh in gradients as training weighs them, all alike.)
- The last step of an epoch may have fewer micro-batches, whose gradients the trainer still divides by the
  full number; S here is that of the mean over those that there were.
- One flat vector and one all-reduce a step. Sizes are known on the host and counted there; they are
  copied to the device once a step, without waiting for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # the package around it knows Lightning
    from onn_lightning.distributed.data_parallel import DataParallel


@dataclass(frozen=True)
class StepRecord:
    """What one forward pass of training leaves for the PI monitor (all detached).

    Args:
        main_loss: L_main of this micro-batch, nats; with several ranks the mean of theirs is that of their
            global batch.
        kl: KL term, nats.
        surprise: [N] leaf; its `.grad` holds S of every neuron once backward has run.
        activation: [N] fraction of the tokens for which each neuron fired.
        tokens: places in the rows, padding included; what `activation` is a fraction of.
        loss_sums, entropy_sums: [H] sums over the targets of every modality that has a head, nats.
        targets, predictions: H numbers: targets, and how many of them come with an entropy.
    """

    main_loss: Tensor
    kl: Tensor
    surprise: Tensor
    activation: Tensor
    tokens: int
    loss_sums: Tensor
    entropy_sums: Tensor
    targets: tuple[int, ...]
    predictions: tuple[int, ...]


@dataclass(frozen=True)
class StepTotals:
    """Sums over all micro-batches and ranks of one optimizer step.

    Args:
        surprise: [N] S_i of the step's loss.
        fired: [N] for how many tokens each neuron fired.
        tokens: scalar.
        loss_sums, entropy_sums, targets, predictions: [H].
        kl: scalar, mean over micro-batches and ranks.
    """

    surprise: Tensor
    fired: Tensor
    tokens: Tensor
    loss_sums: Tensor
    entropy_sums: Tensor
    targets: Tensor
    predictions: Tensor
    kl: Tensor


class StepSums:
    """Adds up micro-batches on their device.

    Args:
        like: record whose sizes, type and device all others share.
    """

    def __init__(self, like: StepRecord) -> None:
        self._sizes = (len(like.surprise), len(like.targets))
        neurons, modalities = self._sizes
        self._vector = torch.zeros(
            2 * neurons + 4 * modalities + 3, dtype=like.surprise.dtype, device=like.surprise.device
        )
        self._counts = [0] * (2 * modalities + 1)  # targets and predictions of each, tokens
        self.micro_batches = 0

    def add(self, record: StepRecord, loss_scale: Tensor | None = None) -> None:
        """Add a micro-batch after its backward pass.

        Args:
            record: what it left.
            loss_scale: scalar by which the loss was multiplied before backward; None: 1.
        """
        squares, fired, loss_sums, entropy_sums, kl, *_ = self._parts(self._vector)
        if record.surprise.grad is not None:
            surprise = record.surprise.grad if loss_scale is None else record.surprise.grad / loss_scale
            squares.addcmul_(surprise, surprise)
        fired.add_((record.activation * record.tokens).round_())
        loss_sums.add_(record.loss_sums)
        entropy_sums.add_(record.entropy_sums)
        kl.add_(record.kl)
        counted = (*record.targets, *record.predictions, record.tokens)
        self._counts = [have + new for have, new in zip(self._counts, counted, strict=True)]
        self.micro_batches += 1

    def total(self, accumulation: int, ranks: DataParallel) -> StepTotals:
        """The step's sums over all ranks: every rank must call this, once.

        Args:
            accumulation: number by which training divided the loss of every micro-batch.
            ranks: those that read the parts of the batch.
        """
        host = torch.tensor([*self._counts, self.micro_batches], dtype=self._vector.dtype)
        tail = self._vector[-len(host) :]
        tail.copy_(host.pin_memory() if tail.is_cuda else host, non_blocking=True)
        self._vector.copy_(ranks.sum(self._vector))  # parts of a sum that is still under way cannot be saved
        squares, fired, loss_sums, entropy_sums, kl, targets, predictions, tokens, parts = self._parts(
            self._vector
        )
        return StepTotals(
            surprise=squares.sqrt() * (accumulation / (self.micro_batches * ranks.size)),
            fired=fired,
            tokens=tokens.squeeze(0),
            loss_sums=loss_sums,
            entropy_sums=entropy_sums,
            targets=targets,
            predictions=predictions,
            kl=(kl / parts).squeeze(0),
        )

    def _parts(self, vector: Tensor) -> tuple[Tensor, ...]:
        neurons, modalities = self._sizes
        return vector.split((neurons, neurons, modalities, modalities, 1, modalities, modalities, 1, 1))
