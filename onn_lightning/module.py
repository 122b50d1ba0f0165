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
- Several ranks make one global batch: every mean is taken over its targets, tau over its predictions. A
  rank's loss is its part of the sum times the number of ranks, since gradients are averaged over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from onn_lightning.batch import Batch
from onn_lightning.checkpoint import description
from onn_lightning.checkpoint.older import in_todays_shapes
from onn_lightning.distributed import DataParallel, parallelize
from onn_lightning.distributed.data_parallel import to_device
from onn_lightning.distributed.layout import data_parallel_of, mesh_of, sharding_of
from onn_lightning.distributed.materialize import Draws, is_on_meta
from onn_lightning.distributed.parallelize import free_gathered
from onn_lightning.distributed.whole_kl import whole_kl
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
from onn_lightning.optim import default_optimizer, parameter_groups
from onn_lightning.optim.clipping import clip_by_norm, clip_by_value
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
        surprise: of which tokens the gate loss takes S when there are several ranks: "global", of the whole
            batch's, so that any number of ranks trains alike; "per_rank", of each rank's own, without an
            all-reduce of one number a neuron in every SBL's backward pass.
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
        surprise: Literal["global", "per_rank"] = "global",
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
        self.surprise = surprise
        self.ranks = DataParallel()

        draws = Draws()
        network = Network(trunk, modalities)
        self._draws = draws if is_on_meta(network) else None
        self.trunk, self.positions = network.trunk, network.positions
        self.embedders, self.heads = network.embedders, network.heads
        weights = [(loss_weights or {}).get(name, 1.0) for name in self.heads]
        self.register_buffer("loss_weights", torch.tensor(weights, device="cpu"))
        self.register_buffer("w_gate", torch.tensor(float(w_gate), device="cpu"))
        self.register_buffer("w_kl", torch.tensor(float(w_kl), device="cpu"))
        self.held_out = nn.ModuleDict()
        with torch.device("cpu"):  # also where the network is built on the meta device
            self.train_bits_per_byte = BitsPerByte()
        self.last_step: StepRecord | None = None
        self.vitals: Vitals | None = None
        """The figures of the newest optimizer step, set by `PIMonitor`."""
        self.gradient_norm: Tensor | None = None
        """Norm of the gradients of the step under way, before clipping, where a callback has taken it."""
        self.history: list[dict[str, Any]] = []
        """How the network was reshaped so far, see `description.history`."""

    def setup(self, stage: str) -> None:
        """Refuse a type of weights in which nothing can be learned.

        Raises:
            MisconfigurationException: for float16.
        """
        if stage == "fit" and self.trainer.precision == "16-true":
            raise MisconfigurationException(
                "trainer.precision 16-true: float16 has no numbers as small as AdamW's eps (1e-8) and most "
                "squares of gradients. Choose bf16-true or, for float16, 16-mixed, which scales the loss"
            )

    # ---- many ranks ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Give values to what was built on the meta device; shard where the trainer's strategy does so."""
        strategy = self.trainer.strategy
        parallelize(self, mesh_of(strategy), sharding_of(strategy), self._draws)
        self.ranks = data_parallel_of(strategy)
        sums = self.ranks.sum if self.ranks.size > 1 and self.surprise == "global" else None
        for _, layer in self.trunk.sbl_layers():
            layer.sum_squares = sums

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

    def main_loss(self, outputs: Mapping[str, HeadOutput], targets: Tensor | None = None) -> Tensor:
        """L_main: the weighted sum of every modality's mean loss; 0 for a modality without targets.

        Args:
            outputs: of the heads.
            targets: [H] how many each modality has on all ranks; None: these are all. With several ranks
                L_main is the mean of what they return.
        """
        total = self.loss_weights.new_zeros(())
        for place, (name, weight) in enumerate(zip(self.heads, self.loss_weights, strict=True)):
            if name in outputs:
                loss = outputs[name].loss
                count = max(1, loss.numel()) if targets is None else targets[place] / self.ranks.size
                total = total + weight * (loss.sum() / count)
        return total

    # ---- training --------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """VFE of one batch."""
        output = self(batch)
        outputs = self.predict_targets(batch, output.hidden)
        like = self.loss_weights.new_zeros((), dtype=output.auxiliary.surprise.dtype)
        losses = [outputs[name].loss.detach() if name in outputs else None for name in self.heads]
        entropies = [outputs[name].entropy if name in outputs else None for name in self.heads]
        entropy_sums, targets, predictions = _sums(entropies, like), _counts(losses), _counts(entropies)

        counts = to_device((*targets, sum(predictions)), like)
        whole = self.ranks.sum(torch.cat((counts, entropy_sums.sum()[None])))  # of all ranks
        whole_targets, tau = whole[:-2].clamp_min(1), whole[-1] / whole[-2].clamp_min(1)
        main_loss = self.main_loss(outputs, whole_targets)
        kl = whole_kl((layer for _, layer in self.trunk.sbl_layers()), tau.clamp(*self.prior_std_range))
        gate_loss = output.auxiliary.gate_handle
        if self.surprise == "global":  # one gate loss of all ranks: what is injected is averaged over them
            gate_loss = gate_loss * self.ranks.size
        loss = main_loss + self.w_gate * gate_loss + self.w_kl * kl

        self.last_step = StepRecord(
            main_loss=main_loss.detach(),
            kl=kl.detach(),
            surprise=output.auxiliary.surprise,
            activation=output.auxiliary.activation,
            tokens=batch.modality_ids.numel(),
            loss_sums=_sums(losses, like),
            entropy_sums=entropy_sums,
            targets=targets,
            predictions=predictions,
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

    def on_validation_epoch_end(self) -> None:
        """What looks at weights after validation sees them as training does."""
        free_gathered(self)

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
        """Clip as the trainer is told to, by our own `optim.clipping`; a skipped step has nothing to clip."""
        norm, self.gradient_norm = self.gradient_norm, None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradient_clip_val or not parameters:
            return
        precision = self.trainer.precision_plugin
        if type(precision).clip_grad_by_norm is not Precision.clip_grad_by_norm:
            # FSDP1 and the like hold flat shards that only they can add up
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        scaler = getattr(precision, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # a fused step would do it by itself, but only after the clipping
        if gradient_clip_algorithm == "value":
            clip_by_value(parameters, gradient_clip_val)
        else:
            clip_by_norm(parameters, gradient_clip_val, norm)

    # ---- checkpoints and answers -----------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add a plain-data description from which the module can be made again."""
        checkpoint[description.KEY] = description.describe(
            self.trunk.config, list(self.modalities.values()), self.history
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the history that the checkpoint's description holds; older shapes become today's."""
        self.history = description.history(checkpoint)
        if "state_dict" in checkpoint:  # otherwise the strategy has loaded the weights
            checkpoint.update(in_todays_shapes(checkpoint, self))

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


def _sums(values: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """[H] sum of each tensor; 0 where there is none."""
    zero = like.new_zeros(())
    return torch.stack([zero if value is None else value.sum(dtype=like.dtype) for value in values])


def _counts(values: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(0 if value is None else value.numel() for value in values)
