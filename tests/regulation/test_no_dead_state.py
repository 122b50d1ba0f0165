"""No regulator drives the network into a dead state: gates shut, weights without bound, learning at an end.

Notable:
- So died the published experiments: a batch was learned by heart, tau went to 0, w_gate = -log tau grew,
  gates closed for good. `test_without_a_release_the_published_form_dies` shows it.
- Each case is a set of callbacks; a new regulator is one line in `REGULATORS`.
- Policies stand here with constants that no sane config would have: a weight of 1 is 30 times what halves the
  activation on real text.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from toy import ByteText, Patches, pack

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import LossReweighting, NeuronProtection, PIMonitor, Plasticity
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import NeuronAdamW
from onn_lightning.regulation import (
    ActivationTarget,
    ConsolidatingWeight,
    FixedWeight,
    IntegrityBalance,
    IntegrityPlasticity,
    IntegrityWeight,
    LossSigmoidWeight,
    NegativeLogTauWeight,
    WeightPolicy,
)

GATE_POLICIES: dict[str, Callable[[], WeightPolicy]] = {
    "fixed at 1": lambda: FixedWeight(1.0),
    "1 - sigmoid(L)": lambda: LossSigmoidWeight(),
    "-log tau": lambda: NegativeLogTauWeight(maximum=50.0),
    "by PI up to 1": lambda: IntegrityWeight(0.0, 1.0),
    "activation target": lambda: ActivationTarget(high=1.0),
    "consolidating": lambda: ConsolidatingWeight(high=1.0),
}
REGULATORS: dict[str, Callable[[], list[Callback]]] = {
    **{name: lambda make=make: [LossReweighting(w_gate=make())] for name, make in GATE_POLICIES.items()},
    "w_kl by -log tau": lambda: [LossReweighting(w_kl=NegativeLogTauWeight())],
    "plasticity by novelty": lambda: [Plasticity()],
    "plasticity by integrity": lambda: [Plasticity(IntegrityPlasticity(low=0.05))],
    "protection of neurons": lambda: [NeuronProtection(tables=True)],
    "all together": lambda: [
        LossReweighting(ActivationTarget(), NegativeLogTauWeight(), IntegrityBalance()),
        Plasticity(IntegrityPlasticity(low=0.05)),
        NeuronProtection(tables=True),
    ],
}
each_regulator = pytest.mark.parametrize("make", REGULATORS.values(), ids=REGULATORS)
BY_HEART_ALSO = ("-log tau", "consolidating", "all together")
"""Those that live through 2,000 steps of one batch, 20 seconds each: of the others all share with these what
holds the gates open, or act together with the rest in the last."""

MODALITIES = [ByteText(), Patches()]
BY_HEART = pack([[[("text", "the cat sat on")]]] * 2, MODALITIES)
NEW_DOMAIN = pack([[[("text", "9184 + 27 = xy")]], [[("text", "QWZ? 77 -- 0!!")]]], MODALITIES)
STEPS_BY_HEART, STEPS_OF_THE_NEW = 2000, 300


@dataclass
class Life(Callback):
    """What every step looked like."""

    losses: list[float] = field(default_factory=list)
    activation: list[float] = field(default_factory=list)
    firing: list[float] = field(default_factory=list)
    """Share of the neurons that fired at all, in the SBL where it was smallest."""
    weights: list[tuple[float, ...]] = field(default_factory=list)
    """w_gate, w_kl and the modalities' weights."""
    rates: list[float] = field(default_factory=list)
    """Smallest learning rate of a group in the step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, OmniModule) and pl_module.vitals is not None
        vitals = pl_module.vitals
        fired = vitals.neuron_activation > 0
        self.losses.append(float(vitals.main_loss))
        self.activation.append(float(vitals.activation))
        self.firing.append(
            min(float(fired[part].float().mean()) for part in pl_module.trunk.neuron_slices.values())
        )
        named = ("w_gate", "w_kl", "loss_weights")
        self.weights.append(tuple(torch.cat([pl_module.get_buffer(n).flatten() for n in named]).tolist()))
        self.rates.append(min(group["lr"] for group in optimizer.param_groups))


def live(
    folder: Path, callbacks: Sequence[Callback], batches: Sequence[Batch], **options: Any
) -> tuple[OmniModule, Life]:
    """A small network's life over some batches, from the same beginning in all cases."""
    torch.manual_seed(0)
    module = OmniModule(
        TrunkConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24),
        MODALITIES,
        optimizer=lambda groups: NeuronAdamW(groups, lr=0.01),
        warmup_steps=10,
        min_lr_ratio=1.0,
        **options,
    )
    life = Life()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        max_steps=len(batches),
        log_every_n_steps=1000,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[PIMonitor(), *callbacks, life],
    )
    trainer.fit(module, DataLoader(list(batches), batch_size=None))
    return module, life


def final_loss(life: Life) -> float:
    """Median of the last steps, of which at this learning rate one or another jumps."""
    return statistics.median(life.losses[-60:])


@pytest.fixture(scope="module")
def fresh_loss(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Of a fresh network without regulators on the new domain: near log(2) / 15, for two beginnings."""
    _, life = live(tmp_path_factory.mktemp("fresh"), [], [NEW_DOMAIN] * STEPS_OF_THE_NEW)
    loss = final_loss(life)
    assert 0.046 < loss < 0.05
    return loss


def assert_alive(module: OmniModule, life: Life) -> None:
    """In every step neurons fire in every SBL, weights are bounded, learning rates above 0; all is finite."""
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert min(life.activation) > 0.1
    assert min(life.firing) > 0
    assert all(0 <= weight <= 50 for weights in life.weights for weight in weights)
    assert min(life.rates[10:]) >= 0.05 * 0.01 * (1 - 1e-5)  # warmed up, times the lowest factor


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_HEART_ALSO)
def test_after_2000_steps_of_one_batch_a_new_domain_is_still_learned(
    name: str, fresh_loss: float, tmp_path: Path
) -> None:
    module, life = live(
        tmp_path, REGULATORS[name](), [BY_HEART] * STEPS_BY_HEART + [NEW_DOMAIN] * STEPS_OF_THE_NEW
    )
    assert statistics.median(life.losses[STEPS_BY_HEART - 60 : STEPS_BY_HEART]) < 0.001  # by heart
    assert life.losses[STEPS_BY_HEART] > 10  # and the new domain is new
    assert final_loss(life) < 1.4 * fresh_loss
    assert_alive(module, life)


@pytest.mark.slow
def test_without_a_release_the_published_form_dies(fresh_loss: float, tmp_path: Path) -> None:
    """What the release is for: an SBL without any firing neuron; of the new domain only half is learned."""
    published = LossReweighting(NegativeLogTauWeight(maximum=50.0), minimum_firing=0.0, minimum_loss=0.0)
    batches = [BY_HEART] * STEPS_BY_HEART + [NEW_DOMAIN] * STEPS_OF_THE_NEW
    _, life = live(tmp_path, [published], batches)
    assert life.firing[-1] == 0
    assert final_loss(life) > 1.7 * fresh_loss


# ---- adversarial losses --------------------------------------------------------------------------


HUGE = pack([[[("patch", [3e5, -7e5, 1e6, -1e6, 2e5, 9e5]), ("text", "?!")]]] * 2, MODALITIES)
"""A loss of 1e11."""
NOTHING = pack([[[("patch", [0.0] * 6)]]] * 2, MODALITIES)
"""A loss of 0 at first, as the head begins at 0; no predictions, tau = 0."""
LOSSES = {
    "zero, then huge": [NOTHING] * 25 + [HUGE] * 25,
    "alternating": [HUGE, NOTHING] * 10 + [HUGE, BY_HEART] * 10,
}


@each_regulator
@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
def test_adversarial_losses_leave_a_network_that_learns(
    losses: list[Batch], make: Callable[[], list[Callback]], tmp_path: Path
) -> None:
    module, life = live(tmp_path, make(), [*losses, *[NEW_DOMAIN] * 120])
    assert max(life.losses) > 1e11 and min(life.losses[: len(losses)]) < 0.01
    assert_alive(module, life)
    assert statistics.median(life.losses[-15:]) < 1  # from 5.4 nats
