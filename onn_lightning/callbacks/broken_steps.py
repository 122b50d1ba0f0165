"""`SkipBrokenSteps`: a step whose loss or gradient is not finite moves nothing, is counted and named.

Notable:
- Decided once all micro-batches are in and before the optimizer moves, by one scalar over all ranks: they
  skip together, whichever of them had the NaN. A sharded gradient (DTensor) is looked at where it lies.
- A gradient is finite where its norm is: one whose squares overflow would break AdamW and clipping as well.
- A broken step's gradients are taken away, or the optimizer is told to skip it: weights, momentum and counts
  of steps keep every bit. The schedule and the data go on.
- Regulators see the vitals of the step and keep what they had where those are not finite (the gate loss rests
  in the step after). Where only the gradient of some weight is broken, the vitals are whole, and count.
- On accelerators the host never waits for it: our optimizers and torch's fused ones are handed the flag and
  skip by themselves (torch's own protocol for loss scalers, `found_inf`). Steps are then told of, counted and
  stopped for at the logging rhythm, a broken gradient without its name; those not read yet when a checkpoint
  is saved are not in its counts. For other optimizers, and on the CPU, the host reads one scalar a step.
- Under a loss scaler overflowing gradients are its business: it skips such steps by itself and lowers the
  scale. They are not counted here; a loss that is not finite is, since no scale mends it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from onn_lightning.callbacks.pi_monitor import MOST_UNREAD, PIMonitor, ReadsVitals
from onn_lightning.module import OmniModule
from onn_lightning.optim.clipping import gradient_norm, local_norms
from onn_lightning.optim.firing import FiringRows


class SkipBrokenSteps(ReadsVitals):
    """Skips steps that are not finite, and stops the run after many in a row.

    Logs at the trainer's rhythm `train/skipped_steps`, those of the whole run, and `train/grad_norm`, the
    norm of all gradients before clipping, which is left in `module.gradient_norm` for the clipping.

    Args:
        max_consecutive: the run stops with the so many-th broken step in a row.
    Raises:
        ValueError: if `max_consecutive` is below 1.
    """

    def __init__(self, max_consecutive: int = 10) -> None:
        if max_consecutive < 1:
            raise ValueError(
                f"SkipBrokenSteps: max_consecutive is {max_consecutive}, it must be at least 1 (1 stops the "
                "run at the first broken step)"
            )
        self.max_consecutive = max_consecutive
        self._total = self._in_a_row = 0
        self._whole_losses: Tensor | None = None  # bool [H], of this rank's micro-batches
        self._unread: list[tuple[int, Tensor]] = []  # step, and [1 + H] on the device: broken, which losses

    @property
    def total(self) -> int:
        """Steps that were skipped since the run began."""
        return self._total

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a step that was interrupted."""
        self._whole_losses, self._unread = None, []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember which losses of a micro-batch were whole: the vitals know only those of all ranks."""
        assert isinstance(pl_module, OmniModule)
        if pl_module.last_step is None:
            return
        whole = torch.isfinite(pl_module.last_step.loss_sums)
        self._whole_losses = whole if self._whole_losses is None else self._whole_losses & whole

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Skip the step if it is broken.

        Raises:
            RuntimeError: if it is the last of `max_consecutive` in a row.
        """
        assert isinstance(pl_module, OmniModule)
        if pl_module.vitals is None or self._whole_losses is None:
            return
        whole_losses, self._whole_losses = self._whole_losses, None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if scaled:
            whole = torch.isfinite(pl_module.vitals.main_loss)
        else:
            norm = pl_module.gradient_norm = gradient_norm(parameters)
            whole = pl_module.vitals.finite & norm.isfinite()
        broken, step = _on_any_rank(~whole), trainer.global_step + 1
        if not scaled and self.skips_on_device(optimizer, parameters[0].device):
            optimizer.found_inf = broken  # type: ignore[attr-defined]
            self._unread.append((step, torch.cat([broken.view(1), (~whole_losses).to(broken)])))
            if PIMonitor.logs_now(trainer) or len(self._unread) == MOST_UNREAD:
                self._read(list(pl_module.heads))
        elif not broken.item():
            self._in_a_row = 0
        else:
            losses = _named(list(pl_module.heads), (~whole_losses).tolist())
            what = _over_ranks(losses, _broken_gradient(pl_module, parameters))
            if not scaled:  # a scaler has to find the gradients that it skips the step for
                for parameter in parameters:
                    parameter.grad = None
            self._count(step, what)
        if PIMonitor.logs_now(trainer):
            pl_module.log("train/skipped_steps", float(self._total))
            if pl_module.gradient_norm is not None:
                pl_module.log("train/grad_norm", pl_module.gradient_norm)

    @staticmethod
    def skips_on_device(optimizer: Optimizer, device: torch.device) -> bool:
        """Whether the optimizer itself can skip a step, so that the host need not know of it at once."""
        can = isinstance(optimizer, FiringRows) or getattr(optimizer, "_step_supports_amp_scaling", False)
        return can and device.type != "cpu"

    def _read(self, names: list[str]) -> None:
        """Tell of the steps since the last time; the one place where the host waits for their device."""
        steps = [step for step, _ in self._unread]
        rows = torch.stack([row for _, row in self._unread]).tolist()
        self._unread = []
        for step, (broken, *losses) in zip(steps, rows, strict=True):
            if broken:
                self._count(step, _over_ranks(_named(names, losses), ""))
            else:
                self._in_a_row = 0

    def _count(self, step: int, what: str) -> None:
        self._total += 1
        self._in_a_row += 1
        if self._in_a_row < self.max_consecutive:
            rank_zero_warn(
                f"SkipBrokenSteps: optimizer step {step:,} is skipped, {what} is not finite "
                f"({self._in_a_row} in a row, {self._total} in all; the run stops at {self.max_consecutive} "
                "in a row)"
            )
            return
        self._in_a_row = 0  # who goes on from here has changed something
        raise RuntimeError(
            f"SkipBrokenSteps: {self.max_consecutive} steps in a row were not finite, the last of them "
            f"optimizer step {step:,}: {what}. None of them has moved a weight. Lower the learning rate, set "
            "trainer.gradient_clip_val, or look at the data of these steps; then go on from the last "
            "checkpoint"
        )

    # ---- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How many steps were skipped, in all and lately in a row."""
        return {"total": self._total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._total, self._in_a_row = state_dict["total"], state_dict["in_a_row"]


# ---- what is broken --------------------------------------------------------------------------------


def _on_any_rank(broken: Tensor) -> Tensor:
    """1 where any rank says so, else 0; scalar float32."""
    anywhere = broken.to(torch.float32)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    return anywhere


def _named(names: list[str], broken: list[bool]) -> str:
    """The modalities whose loss was broken on this rank."""
    return ", ".join(name for name, is_broken in zip(names, broken, strict=True) if is_broken)


def _broken_gradient(module: OmniModule, parameters: list[nn.Parameter]) -> str:
    """Name of the first parameter of the module whose gradient is broken on this rank."""
    held = set(parameters)
    for name, parameter in module.named_parameters():
        gradient = parameter.grad if parameter in held else None
        if gradient is not None and not all(norm.isfinite() for norm in local_norms([gradient])):
            return name
    return ""


def _over_ranks(losses: str, gradient: str) -> str:
    """What was broken, and on which rank; a broken loss breaks gradients, so it goes first."""
    found: list[tuple[str, str] | None] = [(losses, gradient)]
    several = dist.is_available() and dist.is_initialized()
    if several:
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, (losses, gradient))
    for place, kind in enumerate(("the loss of", "the gradient of")):
        named = [(rank, pair[place]) for rank, pair in enumerate(found) if pair is not None and pair[place]]
        if named:
            return ", ".join(
                f"{kind} {name} on rank {rank}" if several else f"{kind} {name}" for rank, name in named
            )
    return "a gradient, or the sum of losses, entropies and surprise,"
