"""`PIMonitor`: measures every optimizer step - losses, tau, surprise, PI, activation - alike on all ranks.

Notable:
- Every micro-batch is added up on its device; before the optimizer moves, one all-reduce of one vector makes
  the step's `Vitals`, which the regulating callbacks after this one read off `module.vitals`.
- Nothing synchronises with the device in a step. Logging, and figures that need a pass over the weights,
  happen at the trainer's rhythm (`log_every_n_steps`).
- A step with figures that are not finite shows them as they are; the moving average and the lifetime counts
  stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim import Optimizer

from onn_lightning.module import OmniModule
from onn_lightning.regulation.step_sums import StepSums, StepTotals
from onn_lightning.regulation.vitals import Vitals


class PIMonitor(Callback):
    """Sets `module.vitals` in every optimizer step and logs it.

    Args:
        ema: decay of the moving average of PI a step.
    Raises:
        ValueError: if `ema` is not in [0, 1).
    """

    def __init__(self, ema: float = 0.98) -> None:
        if not 0 <= ema < 1:
            raise ValueError(f"PIMonitor: ema is {ema}, it must be at least 0 and below 1")
        self.ema = ema
        self._step = 0
        self._sums: StepSums | None = None
        self._average: Tensor | None = None  # [2]: of PI, and of the weight that has gone into it so far
        self._fired: Tensor | None = None
        self._seen: Tensor | None = None

    # ---- for others ------------------------------------------------------------------------------

    @staticmethod
    def require_before(trainer: Trainer, callback: Callback) -> None:
        """Make sure that a monitor acts before `callback` does.

        Raises:
            MisconfigurationException: if none stands before it in the trainer's callbacks.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(callback)] if callback in callbacks else callbacks
        if any(isinstance(candidate, PIMonitor) for candidate in before):
            return
        name = type(callback).__name__
        stands = "stands after it" if any(isinstance(c, PIMonitor) for c in callbacks) else "is missing"
        raise MisconfigurationException(
            f"{name} reads what PIMonitor measures, but the PIMonitor {stands}: put "
            f"onn_lightning.callbacks.PIMonitor before {name} in trainer.callbacks"
        )

    @property
    def fired_tokens_per_neuron(self) -> Tensor | None:
        """[N] float64: for how many tokens each neuron has fired since it exists; None before any step."""
        return self._fired

    @property
    def seen_tokens_per_neuron(self) -> Tensor | None:
        """[N] float64: how many tokens each neuron has seen since it exists; None before any step."""
        return self._seen

    @property
    def lifetime_activation(self) -> Tensor | None:
        """[N] fraction of the tokens of its life for which each neuron fired; None before any step."""
        if self._fired is None or self._seen is None:
            return None
        return self._fired / self._seen.clamp_min(1)

    # ---- measuring -------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an interrupted step left."""
        self._sums = None

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a micro-batch."""
        assert isinstance(pl_module, OmniModule)
        record = pl_module.last_step
        if record is None:
            return
        if self._sums is None:
            self._sums = StepSums(record)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # asked this way the scale stays on the device
        scale = None if scaler is None else scaler.scale(torch.ones_like(record.kl))
        self._sums.add(record, scale)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Make the step's vitals; log them at the trainer's rhythm."""
        assert isinstance(pl_module, OmniModule)
        if self._sums is None:
            return
        with torch.no_grad():
            totals = self._sums.total(trainer.accumulate_grad_batches)
            self._sums = None
            self._step += 1
            vitals = pl_module.vitals = self._measure(pl_module, totals)
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and (trainer.global_step + 1) % every == 0:
                self._log(pl_module, vitals, totals)

    def _measure(self, module: OmniModule, totals: StepTotals) -> Vitals:
        neuron_activation = totals.fired / totals.tokens
        activation, surprise = neuron_activation.mean(), totals.surprise.mean()
        gate = module.mean_gate()
        modality_loss = totals.loss_sums / totals.targets.clamp_min(1)
        modality_tau = totals.entropy_sums / totals.predictions.clamp_min(1)
        main_loss = torch.dot(module.loss_weights.to(modality_loss.dtype), modality_loss)
        predictions = totals.predictions.sum()
        tau = totals.entropy_sums.sum() / predictions.clamp_min(1)
        # a loss without any distribution beside it is taken as it is
        unit = torch.where(predictions > 0, tau, 1.0)
        modality_unit = torch.where(totals.predictions > 0, modality_tau, unit)

        def integrity(loss: Tensor, unit: Tensor, surprise: Tensor) -> Tensor:
            return module.integrity(loss, unit, surprise, activation, gate)

        pi = integrity(main_loss, unit, surprise)
        finite = torch.isfinite(main_loss + tau + surprise)
        self._count(totals, finite)
        return Vitals(
            step=self._step,
            main_loss=main_loss,
            tau=tau,
            surprise=surprise,
            activation=activation,
            gate=gate,
            prior_std=module.prior_std(tau),
            pi=pi,
            pi_ema=self._averaged(pi, finite),
            modalities=tuple(module.heads),
            modality_loss=modality_loss,
            modality_tau=modality_tau,
            modality_pi=torch.where(
                totals.targets > 0, integrity(modality_loss, modality_unit, surprise), 1.0
            ),
            modality_targets=totals.targets,
            layer_pi=integrity(main_loss, unit, _block_means(module, totals.surprise)),
            neuron_surprise=totals.surprise,
            neuron_activation=neuron_activation,
        )

    def _averaged(self, pi: Tensor, finite: Tensor) -> Tensor:
        if self._average is None:
            self._average = torch.zeros(2, dtype=pi.dtype, device=pi.device)
        old = self._average.to(pi)
        new = torch.lerp(torch.stack((pi, torch.ones_like(pi))), old, self.ema)
        self._average = torch.where(finite, new, old)
        average, weight = self._average
        return torch.where(weight > 0, average / weight, pi)

    def _count(self, totals: StepTotals, finite: Tensor) -> None:
        if self._fired is None or self._seen is None:
            self._fired = torch.zeros_like(totals.fired, dtype=torch.float64)
            self._seen = torch.zeros_like(self._fired)
        device = totals.fired.device
        self._fired = self._fired.to(device) + torch.where(finite, totals.fired, 0.0)
        self._seen = self._seen.to(device) + torch.where(finite, totals.tokens, 0.0)

    # ---- logging ---------------------------------------------------------------------------------

    def _log(self, module: OmniModule, vitals: Vitals, totals: StepTotals) -> None:
        layers = dict(module.trunk.sbl_layers())
        slices = module.trunk.neuron_slices
        shares = [_entropy_of_shares(vitals.neuron_surprise[part]) for part in slices.values()]
        module.log_dict({"train/main_loss": vitals.main_loss, "train/pi": vitals.pi}, prog_bar=True)
        figures = {
            "tau": vitals.tau,
            "prior_std": vitals.prior_std,
            "surprise": vitals.surprise,
            "gate_loss": torch.stack(shares).sum(),
            "kl_loss": totals.kl,
            "pi_ema": vitals.pi_ema,
            "activation_rate": vitals.activation,
            "gate": vitals.gate,
            "sigma": _mean_sigma(layer.sigma_weight for layer in layers.values()),
            "w_gate": module.w_gate,
            "w_kl": module.w_kl,
        }
        for name, loss, pi, weight in zip(
            vitals.modalities, vitals.modality_loss, vitals.modality_pi, module.loss_weights, strict=True
        ):
            figures |= {f"{name}_loss": loss, f"pi/{name}": pi, f"loss_weight/{name}": weight}
        figures |= {f"pi_block/{block}": pi for block, pi in enumerate(vitals.layer_pi)}
        for kind in dict.fromkeys(name.rpartition(".")[2] for name in slices):
            names = [name for name in slices if name.rpartition(".")[2] == kind]
            fired = [vitals.neuron_activation[slices[n]] for n in names]
            figures[f"activation/{kind}"] = torch.cat(fired).mean()
            figures[f"sigma/{kind}"] = _mean_sigma(layers[n].sigma_weight for n in names)
            figures[f"gate/{kind}"] = torch.cat([layers[n].gate_param for n in names]).mean()
        module.log_dict({f"train/{name}": value for name, value in figures.items()})

    # ---- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Steps, moving average and lifetime counts, on the CPU."""
        tensors = {
            "average": self._average,
            "fired_tokens_per_neuron": self._fired,
            "seen_tokens_per_neuron": self._seen,
        }
        return {"step": self._step} | {
            name: tensor.detach().cpu().clone() for name, tensor in tensors.items() if tensor is not None
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._step = state_dict["step"]
        self._average = state_dict.get("average")
        self._fired = state_dict.get("fired_tokens_per_neuron")
        self._seen = state_dict.get("seen_tokens_per_neuron")


def _block_means(module: OmniModule, neurons: Tensor) -> Tensor:
    """[N] -> [L] mean over the neurons of every block."""
    slices = module.trunk.neuron_slices
    starts = [part.start for name, part in slices.items() if name.endswith(".attention.qkv")]
    sizes = [end - start for start, end in zip(starts, [*starts[1:], len(neurons)], strict=True)]
    return torch.stack([part.mean() for part in neurons.split(sizes)])


def _entropy_of_shares(surprise: Tensor) -> Tensor:
    """Gate loss of one SBL: the entropy of its neurons' shares of its surprise."""
    shares = surprise / surprise.sum().clamp_min(torch.finfo(surprise.dtype).tiny)
    return torch.special.entr(shares).sum()


def _mean_sigma(raw: Iterable[Tensor]) -> Tensor:
    """Mean over all weights of sigma = softplus(raw)."""
    weights = list(raw)
    total = torch.stack([softplus(weight).sum(dtype=torch.float32) for weight in weights]).sum()
    return total / sum(weight.numel() for weight in weights)
