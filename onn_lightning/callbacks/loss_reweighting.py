"""`LossReweighting`: policies set the weights of the loss's terms for the next step.

Notable:
- It writes, in place and on the device, the buffers `w_gate`, `w_kl` and `loss_weights` of the module: no
  step is synchronised or compiled anew for them. What the module was configured with holds in the first
  step.
- Weights are those of the step that FOLLOWS: the vitals of a step exist only after its backward.
- Whatever policy chooses `w_gate`, the gate loss is released before it closes the network (`GateRelease`).
- All ranks have the same vitals, hence the same weights.
- The buffers and the policies' state are in the checkpoint: a resumed run goes on bit for bit. Under another
  kind of policy than the checkpoint's, the policy begins anew.
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from onn_lightning.callbacks.policies import PolicyCallback
from onn_lightning.module import OmniModule
from onn_lightning.regulation.gate_release import GateRelease
from onn_lightning.regulation.modality_weights import ModalityPolicy
from onn_lightning.regulation.weights import WeightPolicy


class LossReweighting(PolicyCallback):
    """Sets `w_gate`, `w_kl` and the modalities' loss weights after every step.

    Args:
        w_gate: policy of the gate loss's weight; None: it stays what it is.
        w_kl: likewise of the KL term's.
        loss_weights: likewise of the modalities' losses.
        minimum_firing: share of its neurons that every SBL has to keep firing; the gate loss is off while one
            has fewer, and at full strength where all have twice as many. 0: no floor.
        minimum_loss: nats of the main loss below which the gate loss fades in proportion. 0: it does not.
    """

    def __init__(
        self,
        w_gate: WeightPolicy | None = None,
        w_kl: WeightPolicy | None = None,
        loss_weights: ModalityPolicy | None = None,
        minimum_firing: float = 0.1,
        minimum_loss: float = 0.1,
    ) -> None:
        given = {"w_gate": w_gate, "w_kl": w_kl, "loss_weights": loss_weights}
        super().__init__({name: policy for name, policy in given.items() if policy is not None})
        self.gate_release = GateRelease(minimum_firing, minimum_loss)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the monitor; take the modalities' configured weights as their base.

        Raises:
            MisconfigurationException: without a monitor before this callback, or if a policy does not fit
            the run.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        assert isinstance(pl_module, OmniModule)
        slices = pl_module.trunk.neuron_slices.values()
        self.gate_release.prepare([part.stop - part.start for part in slices])
        if "loss_weights" in self.policies:
            policy = self.policies["loss_weights"]
            assert isinstance(policy, ModalityPolicy)
            try:
                policy.prepare(pl_module.loss_weights, tuple(pl_module.heads))
            except ValueError as error:
                raise MisconfigurationException(str(error)) from error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The policies' state, and the layout of the network, lie where the vitals are made."""
        super().on_fit_start(trainer, pl_module)
        self.gate_release.to(pl_module.device)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Write the weights of the next step."""
        assert isinstance(pl_module, OmniModule)
        if pl_module.vitals is None:
            return
        for name, policy in self.policies.items():
            weight = policy(pl_module.vitals)
            if name == "w_gate":
                weight = weight * self.gate_release(pl_module.vitals)
            pl_module.get_buffer(name).copy_(weight)
