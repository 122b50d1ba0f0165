"""`OmniModule`: the step, the free energy, the optimizer; nothing else.

Notable:
- One pass: embedders scatter, the trunk runs, heads give one loss a token, and
      VFE = L_main + w_gate * L_gate + w_kl * L_kl,   L_main = sum_m loss_weight_m * mean_m.
  L_gate enters as w_gate * gate_handle: zero in value, its gradient is injected inside backward.
- `w_gate`, `w_kl` and the loss weights are buffers: a callback may change them at any step, they are in the
  checkpoint, and no step is recompiled or synchronised for them.
- Surprise exists only after backward: a step leaves a `StepRecord`, out of which the `PIMonitor` callback
  makes PI and all logged figures, over micro-batches and ranks.
- No `.item()` and no Python branch on a tensor's value in the training step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from onn_lightning.batch import Batch
from onn_lightning.checkpoint import description
from onn_lightning.held_out import BitsPerByte, HeldOutMetrics
from onn_lightning.modality import HeadOutput, Modality
from onn_lightning.network import Network
from onn_lightning.nn import (
    AdditivePositions,
    KVCache,
    MoIETrunk,
    TrunkConfig,
    TrunkOutput,
    scatter_embeddings,
)
from onn_lightning.nn.loss import gaussian_kl
from onn_lightning.optim import default_optimizer, parameter_groups
from onn_lightning.regulation.integrity import Alpha, Gamma, Integrity
from onn_lightning.regulation.measure import Measured
from onn_lightning.regulation.step_sums import StepRecord
from onn_lightning.regulation.vitals import Vitals


class OmniModule(LightningModule):
    """One tower over any set of modalities.

    Args:
        trunk: shape of the tower.
        modalities: the kinds of data; from a config they are defined once, in `data`, and shared.
        optimizer: makes the optimizer from parameter groups (see `onn_lightning.optim`).
        warmup_steps: steps over which the learning rate rises linearly to its peak.
        min_lr_ratio: learning rate at the end of the cosine, as a fraction of its peak.
        loss_weights: weight of each modality's loss in L_main, by name; 1 where absent.
        w_gate: weight of the gate loss; `LossReweighting` sets it after every step, and keeps it from closing
            the network for good, which a fixed weight here can do where data is learned by heart.
        w_kl: weight of the KL term.
        pi_alpha: how steep PI is; a number, or "activation_rate".
        pi_gamma: how much surprise counts in PI; a number, or "gate_threshold" (its softplus).
        prior_std_range: bounds (low, high) within which the KL's prior_std follows tau.
    Raises:
        ValueError: for two modalities of one name, a loss weight for an unknown one, or a constant of PI that
            is neither a number of at least 0 nor the word.
    """

    trunk: MoIETrunk
    positions: AdditivePositions
    embedders: nn.ModuleDict
    heads: nn.ModuleDict
    loss_weights: Tensor
    w_gate: Tensor
    w_kl: Tensor

    def __init__(
        self,
        trunk: TrunkConfig,
        modalities: list[Modality],
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 100,
        min_lr_ratio: float = 0.1,
        loss_weights: dict[str, float] | None = None,
        w_gate: float = 0.0,
        w_kl: float = 0.01,
        pi_alpha: Alpha = 1.0,
        pi_gamma: Gamma = 1.0,
        prior_std_range: tuple[float, float] = (0.1, 1.0),
    ) -> None:
        super().__init__()
        self.modalities: dict[str, Modality] = {modality.name: modality for modality in modalities}
        if len(self.modalities) != len(modalities):
            raise ValueError(f"two modalities share a name: {[modality.name for modality in modalities]}")
        unknown = set(loss_weights or {}) - set(self.modalities)
        if unknown:
            raise ValueError(f"loss_weights names {sorted(unknown)}, the run has {sorted(self.modalities)}")
        self.optimizer = optimizer
        self.warmup_steps, self.min_lr_ratio = warmup_steps, min_lr_ratio
        self.integrity = Integrity(pi_alpha, pi_gamma)
        self.prior_std_range = prior_std_range

        network = Network(trunk, modalities)
        self.trunk, self.positions = network.trunk, network.positions
        self.embedders, self.heads = network.embedders, network.heads
        weights = [(loss_weights or {}).get(name, 1.0) for name in self.heads]
        self.register_buffer("loss_weights", torch.tensor(weights))
        self.register_buffer("w_gate", torch.tensor(float(w_gate)))
        self.register_buffer("w_kl", torch.tensor(float(w_kl)))
        self.held_out = nn.ModuleDict()
        self.train_bits_per_byte = BitsPerByte()
        self.last_step: StepRecord | None = None
        self.vitals: Vitals | None = None
        """The figures of the newest optimizer step, set by `PIMonitor`."""
        self.history: list[dict[str, Any]] = []
        """How the network was reshaped so far, see `description.history`."""

    # ---- forward ---------------------------------------------------------------------------------

    def forward(self, batch: Batch, cache: KVCache | None = None) -> TrunkOutput:
        """Embed and run the tower.

        Args:
            batch: packed rows; with a cache, the new tokens of one document a row.
            cache: past keys and values, extended in place.
        """
        x = scatter_embeddings(batch, self.embedders, self.trunk.config.hidden_size)
        x = x + self.positions(batch.positions).to(x.dtype)
        return self.trunk(x, batch.positions, None if cache is not None else batch.document_ids, cache)

    def predict_targets(self, batch: Batch, hidden: Tensor) -> dict[str, HeadOutput]:
        """Run every head over the hidden states that precede its modality's targets."""
        flat = hidden.flatten(0, 1)  # [B * T, D]
        outputs = {}
        for name, head in self.heads.items():
            tokens = batch.modalities.get(name)
            if tokens is None or tokens.targets is None:
                continue
            output = head(flat[tokens.source_indices], tokens.targets)
            outputs[name] = output if isinstance(output, HeadOutput) else HeadOutput(output)
        return outputs

    def main_loss(self, outputs: Mapping[str, HeadOutput]) -> Tensor:
        """L_main: the weighted sum of every modality's mean loss; 0 for a modality without targets."""
        total = self.loss_weights.new_zeros(())
        for name, weight in zip(self.heads, self.loss_weights, strict=True):
            if name in outputs:
                total = total + weight * _mean(outputs[name].loss)
        return total

    # ---- training --------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """VFE of one batch."""
        output = self(batch)
        outputs = self.predict_targets(batch, output.hidden)
        main_loss = self.main_loss(outputs)
        tau = _mean_entropy(outputs, main_loss)
        prior_std = tau.clamp(*self.prior_std_range)
        kl = gaussian_kl(((sbl.mu_weight, sbl.sigma_weight) for _, sbl in self.trunk.sbl_layers()), prior_std)
        loss = main_loss + self.w_gate * output.auxiliary.gate_handle + self.w_kl * kl

        losses = [outputs[name].loss.detach() if name in outputs else None for name in self.heads]
        entropies = [outputs[name].entropy if name in outputs else None for name in self.heads]
        self.last_step = StepRecord(
            main_loss=main_loss.detach(),
            kl=kl.detach(),
            surprise=output.auxiliary.surprise,
            activation=output.auxiliary.activation,
            tokens=batch.modality_ids.numel(),
            loss_sums=_sums(losses, main_loss),
            entropy_sums=_sums(entropies, main_loss),
            targets=_counts(losses),
            predictions=_counts(entropies),
        )
        for head_output in outputs.values():
            if head_output.num_bytes is not None:  # a single batch says little of text: over the whole epoch
                self.train_bits_per_byte.update(head_output.loss.detach(), head_output.num_bytes)
                self.log("train/bits_per_byte", self.train_bits_per_byte, on_step=False, on_epoch=True)
        return loss

    def measured(self) -> Measured:
        """What the PI monitor has to know of this network."""
        return Measured(
            modalities=tuple(self.heads),
            gates=tuple(layer.gate_param for _, layer in self.trunk.sbl_layers()),
            block_sizes=self.trunk.block_sizes,
            integrity=self.integrity,
            prior_std_range=self.prior_std_range,
        )

    # ---- held-out data ---------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accumulate the held-out figures of the batch's source."""
        self._held_out_step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accumulate the held-out figures of the batch's source."""
        self._held_out_step("test", batch)

    def _held_out_step(self, stage: str, batch: Batch) -> None:
        outputs = self.predict_targets(batch, self(batch).hidden)
        key = f"{stage}/{batch.source or 'all'}"
        place = key.replace("%", "%25").replace(".", "%2E")  # names of modules hold no dots, file names do
        if place not in self.held_out:
            self.held_out[place] = HeldOutMetrics(list(self.heads)).to(self.device)
        source_metrics = self.held_out[place]
        assert isinstance(source_metrics, HeldOutMetrics)
        metrics = source_metrics.update(batch, outputs)
        for name, metric in metrics.items():
            self.log(
                f"{key}/{name}",
                metric,
                on_step=False,
                on_epoch=True,
                add_dataloader_idx=False,
                # named, since Lightning looks for metrics only once, and sources appear one after another
                metric_attribute=f"held_out.{place}.metrics.{name}",
            )

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Per-token loss of every modality that has a head."""
        outputs = self.predict_targets(batch, self(batch).hidden)
        return {name: output.loss for name, output in outputs.items()}

    # ---- optimizer -------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over named parameter groups, with linear warm-up and a cosine."""
        optimizer = self.optimizer(parameter_groups(self))
        warmup = max(1, self.warmup_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            # Read only now: asking for it makes Lightning set up the loaders, and before a checkpoint is
            # restored that would lose the place in the data.
            total = self.trainer.estimated_stepping_batches
            if math.isinf(total):
                return 1.0
            progress = min(1.0, (step - warmup) / max(1, total - warmup))
            return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is told to, unless the step was skipped: torch clips no empty list by value."""
        if any(parameter.grad is not None for parameter in self.parameters()):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ---- checkpoints and answers -----------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add a plain-data description from which the module can be made again."""
        checkpoint[description.KEY] = description.describe(
            self.trunk.config, list(self.modalities.values()), self.history
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the history that the checkpoint's description holds."""
        self.history = description.history(checkpoint)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        modalities: list[Modality] | None = None,
        trusted_packages: tuple[str, ...] = (),
        **init_args: Any,
    ) -> OmniModule:
        """Make the module of a checkpoint again; nothing in the file is executed.

        Args:
            checkpoint_path: file written by training.
            map_location: device to load to.
            modalities: use these instead of those described in the file.
            trusted_packages: packages, beside our own, from which the file may name modality classes.
            init_args: further arguments of `OmniModule` (optimizer, weights, ...).
        Raises:
            CheckpointError: if the file is missing, damaged, or not one of ours.
        """
        checkpoint = description.read(checkpoint_path, map_location)
        config, described = description.restore(checkpoint, checkpoint_path, modalities, trusted_packages)
        module = cls(config, described, **init_args)
        description.restore_weights(module, checkpoint, checkpoint_path)
        module.history = description.history(checkpoint)
        return module.to(map_location).eval()

    def generate(self, document: Any, **settings: Any) -> str:
        """Continue a document with text; see `onn_lightning.generation.generate`."""
        from onn_lightning.generation import generate

        return "".join(generate(self, document, **settings))


def _mean(loss: Tensor) -> Tensor:
    """Mean, and 0 (with a graph) for a modality without targets in this batch."""
    return loss.sum() / max(1, loss.numel())


def _mean_entropy(outputs: Mapping[str, HeadOutput], like: Tensor) -> Tensor:
    """tau: mean entropy over all supervised positions whose head predicts a distribution."""
    entropies = [output.entropy for output in outputs.values() if output.entropy is not None]
    return _mean(torch.cat(entropies)).to(like.dtype) if entropies else like.new_zeros(())


def _sums(values: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """[H] sum of each tensor; 0 where there is none."""
    zero = like.new_zeros(())
    return torch.stack([zero if value is None else value.sum(dtype=like.dtype) for value in values])


def _counts(values: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(0 if value is None else value.numel() for value in values)
