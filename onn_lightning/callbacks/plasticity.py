"""`Plasticity`: policies set a bounded factor on the learning rate of every parameter group.

Notable:
- The factor holds for the duration of one `optimizer.step()` alone. A hook of the optimizer puts the
  scheduler's own value back as the step ends, before schedulers, checkpoints or LearningRateMonitor look at
  it; so they never see the factor, and chained schedulers do not compound it.
- Lightning calls `on_before_optimizer_step` inside `optimizer.step(closure)`, but under a gradient scaler
  before it, and the scaler may then skip the step. So the factors of a step that has not begun wait for its
  beginning; if it never comes, nothing was changed.
- An exception on the way leaves no factor behind (`on_exception`, which comes before a checkpoint is saved
  of it).
- On an accelerator nothing synchronises where an update rule takes a learning rate that is a tensor there:
  our own optimizers, and torch's that are fused or capturable. Others (torch.optim.Muon among them: it passes
  the learning rate as a number to `add_`, which would read it once a MATRIX) get numbers, all read at once:
  the host waits for the device once a step.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from onn_lightning.callbacks.pi_monitor import PIMonitor
from onn_lightning.callbacks.policies import PolicyCallback
from onn_lightning.module import OmniModule
from onn_lightning.optim.firing import FiringRows
from onn_lightning.regulation.novelty_response import NoveltyResponse
from onn_lightning.regulation.plasticity import FixedPlasticity, PlasticityPolicy

DEFAULT = "default"


class Plasticity(PolicyCallback):
    """Multiplies the learning rate of every group by its policy's factor; logs `train/plasticity/<group>`.

    Args:
        policy: of all groups that have none of their own; None: their learning rate stays the scheduler's.
        groups: policies by name of a parameter group ("matrix", "sigma", ...; see `onn_lightning.optim`).
            Where neither this nor `policy` is given, the measured pair: novelty slows "matrix" down to a
            tenth and speeds "embedding" up to twice (`NoveltyResponse`, `benchmarks/regulation.py`).
    """

    def __init__(
        self, policy: PlasticityPolicy | None = None, groups: dict[str, PlasticityPolicy] | None = None
    ) -> None:
        if policy is None and groups is None:
            groups = {"matrix": NoveltyResponse(alarmed=0.1), "embedding": NoveltyResponse(alarmed=2.0)}
        super().__init__({DEFAULT: policy or FixedPlasticity(1.0), **(groups or {})})
        self._factors: list[Tensor] = []  # one a group, for a step that has not begun
        self._scheduled: list[Any] | None = (
            None  # the groups' own learning rates while the factors are in force
        )
        self._stepping = False
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the beginning and the end of the optimizer's steps.

        Raises:
            MisconfigurationException: if a policy is given for a group that the optimizer does not have.
        """
        self._remove_hooks()
        known: dict[str, None] = {}
        for optimizer in trainer.optimizers:
            known |= dict.fromkeys(_names(optimizer))
            self._hooks += [
                optimizer.register_step_pre_hook(self._on_step_begin),
                optimizer.register_step_post_hook(self._on_step_end),
            ]
        unknown = set(self.policies) - {DEFAULT} - set(known)
        if unknown:
            raise MisconfigurationException(
                f"Plasticity.groups names {sorted(unknown)}, "
                f"the optimizer's parameter groups are {list(known)}"
            )

    # ---- a step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Ask the policies; put their factors in force if the step is under way."""
        assert isinstance(pl_module, OmniModule)
        if pl_module.vitals is None:
            return
        factors = {name: policy(pl_module.vitals) for name, policy in self.policies.items()}
        names = _names(optimizer)
        self._factors = [factors[name if name in factors else DEFAULT] for name in names]
        if self._stepping:
            self._apply(optimizer)
        if PIMonitor.logs_now(trainer):
            figures = zip(names, self._factors, strict=True)
            pl_module.log_dict({f"train/plasticity/{name}": factor for name, factor in figures})

    def _on_step_begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepping = True
        if self._factors:
            self._apply(optimizer)

    def _on_step_end(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepping = False
        self._factors = []
        self._put_back(optimizer)

    def _apply(self, optimizer: Optimizer) -> None:
        self._put_back(optimizer)  # an optimizer may call its closure several times in one step
        self._scheduled = [group["lr"] for group in optimizer.param_groups]
        for group, factor in zip(optimizer.param_groups, _usable(self._factors, optimizer), strict=True):
            group["lr"] = group["lr"] * factor

    def _put_back(self, optimizer: Optimizer) -> None:
        if self._scheduled is not None:
            for group, learning_rate in zip(optimizer.param_groups, self._scheduled, strict=True):
                group["lr"] = learning_rate
            self._scheduled = None

    # ---- ends ------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the scheduler's learning rates, and nothing of ours in the optimizer."""
        for optimizer in trainer.optimizers:
            self._put_back(optimizer)
        self._stepping = False
        self._remove_hooks()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave nothing of ours in the optimizer."""
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._factors = []


def _names(optimizer: Optimizer) -> list[str]:
    """Names of the parameter groups; their numbers where they have none."""
    return [str(group.get("name", number)) for number, group in enumerate(optimizer.param_groups)]


def _usable(factors: list[Tensor], optimizer: Optimizer) -> list[Tensor | float]:
    """Factors as the groups' update rules take them: tensors on an accelerator where none is read."""
    usable: list[Tensor | float] = list(factors)
    ours = isinstance(optimizer, FiringRows)
    read = [
        number
        for number, group in enumerate(optimizer.param_groups)
        if not (
            factors[number].device.type != "cpu" and (ours or group.get("fused") or group.get("capturable"))
        )
    ]
    if read:
        numbers = torch.stack([factors[number] for number in read]).tolist()
        for number, value in zip(read, numbers, strict=True):
            usable[number] = value
    return usable
