"""`PIMonitor`: measures every optimizer step - losses, tau, surprise, PI, activation - alike on all ranks.

Notable:
- Every micro-batch is added up on its device; before the optimizer moves, one all-reduce of one vector makes
  the step's `Vitals`, which the regulating callbacks after this one read off `module.vitals`.
- Nothing synchronises with the device in a step. Figures are logged at the trainer's rhythm
  (`log_every_n_steps`), after ONE copy of all of them to the host: Lightning reads in every step what the
  progress bar shows, wherever it lies. What needs a pass over the weights (sigma) is computed then only.
- A step with figures that are not finite shows them as they are; the moving average, the lifetime counts and
  the means between loggings stay what they were. So it is with a step that a loss scaler skips, as far as the
  overflow shows in the loss or in a neuron's surprise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim import Optimizer

from onn_lightning.module import OmniModule
from onn_lightning.regulation.measure import Measured, entropy_of_shares, measure
from onn_lightning.regulation.moving_average import MovingAverage
from onn_lightning.regulation.step_means import StepMeans
from onn_lightning.regulation.step_sums import StepSums, StepTotals
from onn_lightning.regulation.vitals import Vitals

MEANS = ("main_loss", "tau", "surprise", "pi", "activation")
"""Figures of which also the mean over all steps since the last logging is logged, as `train/mean/<name>`."""

MOST_UNREAD = 1000
"""Steps after which what was kept on the device for the next logging is read, if there has been none."""


class PIMonitor(Callback):
    """Sets `module.vitals` in every optimizer step and logs it.

    Args:
        ema: decay a step of PI's moving average.
    Raises:
        ValueError: if `ema` is not between 0 and 1.
    """

    def __init__(self, ema: float = 0.98) -> None:
        if not 0 < ema < 1:
            raise ValueError(f"PIMonitor: ema is {ema}, it must be between 0 and 1")
        self.ema = ema
        self._step = 0
        self._measured: Measured | None = None
        self._sums: StepSums | None = None
        self._average = MovingAverage(half_life=math.log(0.5) / math.log(ema))
        self._fired: Tensor | None = None
        self._seen: Tensor | None = None
        self._means = StepMeans(MEANS)

    # ---- for others ------------------------------------------------------------------------------

    @staticmethod
    def require_before(trainer: Trainer, callback: Callback) -> None:
        """Make sure that a monitor acts before `callback` does; call it in `callback.setup`.

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

    @staticmethod
    def of(trainer: Trainer) -> PIMonitor | None:
        """The monitor of a trainer, where it has one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, PIMonitor)), None)

    @staticmethod
    def logs_now(trainer: Trainer) -> bool:
        """Whether a step whose optimizer has not moved yet is logged, by the trainer's rhythm."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (trainer.global_step + 1) % every == 0

    @property
    def fired_tokens_per_neuron(self) -> Tensor | None:
        """[N] float64: for how many tokens each neuron has fired since it exists; None before training."""
        return self._fired

    @property
    def seen_tokens_per_neuron(self) -> Tensor | None:
        """[N] float64: how many tokens each neuron has seen since it exists; None before training."""
        return self._seen

    @property
    def lifetime_activation(self) -> Tensor | None:
        """[N] fraction of the tokens of its life for which each neuron fired; None before training."""
        if self._fired is None or self._seen is None:
            return None
        return self._fired / self._seen.clamp_min(1)

    # ---- measuring -------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the state to the device, in memory of its own: spawned processes share what they are given.

        Raises:
            MisconfigurationException: if it is that of another network.
        """
        assert isinstance(pl_module, OmniModule)
        self._sums = None  # of a step that was interrupted
        self._measured = pl_module.measured()
        self._average = copy.deepcopy(self._average).to(pl_module.device)
        self._means = copy.deepcopy(self._means).to(pl_module.device)
        neurons = sum(self._measured.block_sizes)
        if self._fired is not None and len(self._fired) != neurons:
            raise MisconfigurationException(
                f"PIMonitor has counted for {len(self._fired)} neurons, this network has {neurons}: take a "
                "new PIMonitor for another network, `onn grow` or `onn prune` to reshape a checkpoint"
            )
        if self._fired is None or self._seen is None:
            self._fired, self._seen = torch.zeros(2, neurons, dtype=torch.float64)
        self._fired = self._fired.to(pl_module.device, copy=True)
        self._seen = self._seen.to(pl_module.device, copy=True)

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

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Make the step's vitals; log them at the trainer's rhythm."""
        assert isinstance(pl_module, OmniModule)
        if self._sums is None:
            return
        assert self._measured is not None and self._fired is not None and self._seen is not None
        totals = self._sums.total(trainer.accumulate_grad_batches, pl_module.ranks)
        self._sums = None
        self._step += 1
        vitals = measure(totals, self._measured, pl_module.loss_weights, self._step)
        finite = vitals.finite
        average = self._average.update(vitals.pi, finite)
        average = torch.where(self._average.weight > 0, average, vitals.pi)  # no whole step yet
        vitals = pl_module.vitals = replace(vitals, pi_ema=average)
        self._fired += torch.where(finite, totals.fired, 0.0)
        self._seen += torch.where(finite, totals.tokens, 0.0)
        self._means.update(torch.stack([getattr(vitals, name) for name in MEANS]), finite)
        if self.logs_now(trainer):
            self._log(pl_module, vitals, totals)

    # ---- logging ---------------------------------------------------------------------------------

    def _log(self, module: OmniModule, vitals: Vitals, totals: StepTotals) -> None:
        slices = module.trunk.neuron_slices
        gate_losses = [entropy_of_shares(vitals.neuron_surprise[part]) for part in slices.values()]
        *means, broken = self._means.compute()
        self._means.reset()
        figures = {
            "main_loss": vitals.main_loss,
            "pi": vitals.pi,
            "pi_ema": vitals.pi_ema,
            "tau": vitals.tau,
            "prior_std": vitals.prior_std,
            "surprise": vitals.surprise,
            "gate_loss": torch.stack(gate_losses).sum(),
            "kl_loss": totals.kl,
            "activation_rate": vitals.activation,
            "gate": vitals.gate,
            "w_gate": module.w_gate,
            "w_kl": module.w_kl,
            "broken_steps": broken,
        }
        figures |= {f"mean/{name}": mean for name, mean in zip(MEANS, means, strict=True)}
        for name, loss, pi, weight in zip(
            vitals.modalities, vitals.modality_loss, vitals.modality_pi, module.loss_weights, strict=True
        ):
            figures |= {f"{name}_loss": loss, f"pi/{name}": pi, f"loss_weight/{name}": weight}
        figures |= {f"pi_block/{block}": pi for block, pi in enumerate(vitals.layer_pi)}
        figures |= _figures_by_kind(module, vitals.neuron_activation)
        names = [f"train/{name}" for name in figures]
        values = torch.stack([value.float() for value in figures.values()]).cpu()
        logged = dict(zip(names, values, strict=True))
        bar = {name: logged.pop(name) for name in ("train/main_loss", "train/pi")}
        module.log_dict(bar, prog_bar=True)
        module.log_dict(logged)

    # ---- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Steps, moving average, lifetime counts and the means since the last logging, on the CPU."""
        tensors = {
            "fired_tokens_per_neuron": self._fired,
            "seen_tokens_per_neuron": self._seen,
        }
        tensors |= self._average.state_dict(prefix="average.") | self._means.state_dict(prefix="means.")
        return {"step": self._step} | {
            name: tensor.detach().cpu().clone() for name, tensor in tensors.items() if tensor is not None
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._step = state_dict["step"]
        self._fired = state_dict.get("fired_tokens_per_neuron")
        self._seen = state_dict.get("seen_tokens_per_neuron")
        for part, prefix in ((self._average, "average."), (self._means, "means.")):
            own = {
                key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)
            }
            part.load_state_dict(own)


class ReadsVitals(Callback):
    """Base of callbacks that act on what the monitor measures in the same step."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the monitor.

        Raises:
            MisconfigurationException: without a monitor before this callback.
        """
        if stage == "fit":
            PIMonitor.require_before(trainer, self)


def _figures_by_kind(module: OmniModule, activation: Tensor) -> dict[str, Tensor]:
    """Activation, sigma and gate of every kind of SBL (qkv, output, up, down), and sigma of all."""
    layers, slices = dict(module.trunk.sbl_layers()), module.trunk.neuron_slices
    by_kind: dict[str, list[str]] = {}
    for name in layers:
        by_kind.setdefault(name.rpartition(".")[2], []).append(name)
    figures, sums, count = {}, [], 0
    for kind, names in by_kind.items():
        total = _sum_of_sigma(layers[name].sigma_weight for name in names)
        size = sum(layers[name].sigma_weight.numel() for name in names)
        sums.append(total)
        count += size
        figures[f"activation/{kind}"] = torch.cat([activation[slices[name]] for name in names]).mean()
        figures[f"sigma/{kind}"] = total / size
        figures[f"gate/{kind}"] = torch.cat([layers[name].gate_param for name in names]).mean()
    return figures | {"sigma": torch.stack(sums).sum() / count}


def _sum_of_sigma(raw: Iterable[Tensor]) -> Tensor:
    return torch.stack([softplus(weight).sum(dtype=torch.float32) for weight in raw]).sum()
