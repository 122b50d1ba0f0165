"""Held-out figures of one data source, accumulated by torchmetrics over batches and ranks.

Notable:
- `loss` per modality in nats a token; `bits_per_byte` for text over the UTF-8 bytes of its targets,
  which no vocabulary can flatter; `accuracy` of single symbols.
- `exact_match` for sources that mix modalities: the share of documents whose supervised symbols are ALL
  the most probable ones - what greedy generation would have answered right.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from onn_lightning.batch import Batch
from onn_lightning.modality import HeadOutput
from onn_lightning.nn.loss import bits_per_byte


class BitsPerByte(Metric):
    """Summed negative log-likelihood over summed UTF-8 bytes."""

    full_state_update = False
    higher_is_better = False
    nats: Tensor
    num_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, num_bytes: Tensor) -> None:
        """loss [m] nats, num_bytes [m]."""
        self.nats += loss.double().sum()
        self.num_bytes += num_bytes.sum()

    def compute(self) -> Tensor:
        """Bits per byte so far."""
        return bits_per_byte(self.nats, self.num_bytes).float()


class HeldOutMetrics(nn.Module):
    """The metrics of one source.

    Args:
        modalities: names of the modalities that have a head.
    """

    def __init__(self, modalities: list[str]) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        for name in modalities:
            self.metrics[f"{name}_loss"] = MeanMetric()
        self.metrics["bits_per_byte"] = BitsPerByte()
        self.metrics["accuracy"] = MeanMetric()
        self.metrics["exact_match"] = MeanMetric()

    def update(self, batch: Batch, outputs: Mapping[str, HeadOutput]) -> dict[str, Metric]:
        """Add one batch; returns the metrics it had something for, by name."""
        updated: dict[str, Metric] = {}
        mixed = sum(len(tokens.indices) > 0 for tokens in batch.modalities.values()) > 1
        for name, output in outputs.items():
            if not len(output.loss):
                continue
            updated[f"{name}_loss"] = self._add(f"{name}_loss", output.loss.float())
            if output.num_bytes is not None:
                updated["bits_per_byte"] = self._add("bits_per_byte", output.loss, output.num_bytes)
            if output.correct is not None:
                updated["accuracy"] = self._add("accuracy", output.correct.float())
                if mixed:
                    sources = batch.modalities[name].source_indices
                    assert sources is not None
                    updated["exact_match"] = self._add(
                        "exact_match", _exact_matches(batch, sources, output.correct)
                    )
        return updated

    def _add(self, name: str, *values: Tensor) -> Metric:
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        metric.update(*values)
        return metric


def _exact_matches(batch: Batch, source_indices: Tensor, correct: Tensor) -> Tensor:
    """[documents] 1.0 where every supervised symbol of the document is right."""
    length = batch.document_ids.shape[1]
    documents = source_indices // length * length + batch.document_ids.flatten()[source_indices]
    _, group = documents.unique(return_inverse=True)
    misses = (~correct).float()
    wrong = misses.new_zeros(int(group.max()) + 1).index_add_(0, group, misses)
    return (wrong == 0).float()
