"""`NeuronProtection` in real runs: what did not fire keeps every bit, everything else learns."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from toy import VOCABULARY, ByteText, Patches, pack

from onn_lightning import OmniModule
from onn_lightning.callbacks import NeuronProtection, PIMonitor
from onn_lightning.nn import SparseBayesianLinear, TrunkConfig
from onn_lightning.optim import MuonAdamW, NeuronAdamW

ASLEEP = [0, 5]
"""Neurons of every SBL whose threshold no token reaches."""
OPTIMIZERS = {
    "adamw": lambda groups: NeuronAdamW(groups, lr=0.01, weight_decay=0.5),
    "muon": lambda groups: MuonAdamW(groups, lr=0.01, weight_decay=0.5),
}


class Linear(nn.Module):
    """A head with weights of its own."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCABULARY, hidden_size) * 0.1)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(hidden @ self.weight.T, targets, reduction="none")


class UntiedText(ByteText):
    """Bytes whose table gets a gradient only in the rows that are read."""

    def build_head(self, hidden_size: int) -> nn.Module:
        return Linear(hidden_size)


class Watch(Callback):
    """Keeps what every step logged, and which neurons fired in it."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.activation: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, OmniModule) and pl_module.vitals is not None
        self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})
        self.activation.append(pl_module.vitals.neuron_activation.clone())


def make_module(optimizer: str = "adamw", text: ByteText | None = None) -> OmniModule:
    torch.manual_seed(0)
    trunk = TrunkConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24)
    modalities = [text or ByteText(), Patches()]
    module = OmniModule(trunk, modalities, optimizer=OPTIMIZERS[optimizer], warmup_steps=1, w_kl=10.0)
    for _, layer in module.trunk.sbl_layers():
        layer.gate_param.data[ASLEEP] = 1e3
    return module


def make_trainer(folder: Path, *callbacks: Callback, steps: int = 4, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        max_steps=steps,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        **settings,
    )


TEXTS = ("abba", "cab", "dada", "bad")


def batches(module: OmniModule, texts: tuple[str, ...] = TEXTS) -> DataLoader[Any]:
    modalities = list(module.modalities.values())
    picture = [0.1, -0.4, 0.3, 1.0, 0.2, -0.8]
    rows = [[[[("patch", picture), ("text", text)]]] for text in texts]
    return DataLoader([pack(row, modalities) for row in rows], batch_size=None)


def train(module: OmniModule, folder: Path, *callbacks: Callback, **settings: Any) -> Watch:
    watch = Watch()
    make_trainer(folder, PIMonitor(), *callbacks, watch, **settings).fit(module, batches(module))
    return watch


def sbl_parameters(module: OmniModule) -> dict[str, Tensor]:
    return {
        f"{layer}.{name}": parameter.detach().clone()
        for layer, sbl in module.trunk.sbl_layers()
        for name, parameter in sbl.named_parameters()
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_neurons_that_do_not_fire_keep_every_bit_while_others_learn(optimizer: str, tmp_path: Path) -> None:
    module = make_module(optimizer)
    before = sbl_parameters(module)
    watch = train(module, tmp_path, NeuronProtection())
    never = torch.stack(watch.activation).sum(dim=0) == 0
    for layer, part in module.trunk.neuron_slices.items():
        rests = never[part]
        assert rests[ASLEEP].all()
        for name in ("mu_weight", "sigma_weight", "gate_param", "mu_bias"):
            old, new = before[f"{layer}.{name}"], sbl_parameters(module)[f"{layer}.{name}"]
            assert torch.equal(old[rests].view(torch.int32), new[rests].view(torch.int32))
            assert (old[~rests] != new[~rests]).flatten(1 if old.ndim > 1 else 0).any(dim=-1).all()


def test_without_protection_decay_and_kl_move_them(tmp_path: Path) -> None:
    module = make_module()
    before = sbl_parameters(module)
    train(module, tmp_path)
    after = sbl_parameters(module)
    assert all((before[n][ASLEEP] != after[n][ASLEEP]).all() for n in before if n.endswith("mu_weight"))


def test_the_optimizers_state_of_resting_rows_stays_as_it_was(tmp_path: Path) -> None:
    module = make_module()
    trainer = make_trainer(tmp_path, PIMonitor(), NeuronProtection())
    trainer.fit(module, batches(module))
    (optimizer,) = trainer.optimizers
    for _, layer in module.trunk.sbl_layers():
        for parameter in layer.parameters():
            state = optimizer.state[parameter]
            assert state["step"] == 4
            assert not state["exp_avg"][ASLEEP].any() and not state["exp_avg_sq"][ASLEEP].any()
            assert state["exp_avg"].any()


@pytest.mark.parametrize("tables", [True, False])
def test_rows_of_a_table_that_no_token_read_rest_if_asked(tables: bool, tmp_path: Path) -> None:
    """Under momentum a row that the first batch alone has read moves on in the later ones."""
    module = make_module(text=UntiedText())
    table = module.embedders["text"].character.weight
    kept: list[Tensor] = []

    class Keep(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            kept.append(table.detach().clone())

    train(module, tmp_path, NeuronProtection(tables=tables), Keep())
    moves = [(old != new).any(dim=1) for old, new in pairwise(kept)]
    read = [set(b"cab") | {256, 257}, set(b"dada") | {256, 257}, set(b"bad") | {256, 257}]
    for moved, expected in zip(moves, read, strict=True):
        moved_rows = set(moved.nonzero().flatten().tolist())
        # symbols at the end of a row predict nothing and leave their row alone
        assert moved_rows <= expected if tables else moved_rows >= {ord("a"), ord("b")}
    assert bool(moves[1][ord("c")]) is not tables  # read in the step before, not in this one


def test_a_table_that_a_head_is_tied_to_moves_whole(tmp_path: Path) -> None:
    module = make_module()
    table = module.embedders["text"].character.weight
    before = table.detach().clone()
    train(module, tmp_path, NeuronProtection(tables=True))
    assert (table != before).any(dim=1).all()


def test_the_share_of_moving_rows_is_logged(tmp_path: Path) -> None:
    watch = train(make_module(), tmp_path, NeuronProtection())
    for logged, activation in zip(watch.logged, watch.activation, strict=True):
        assert logged["train/firing_rows"] == pytest.approx((activation > 0).float().mean().item())


def test_min_activation_lets_a_neuron_rest_below_a_share_of_its_lifetime(tmp_path: Path) -> None:
    module = make_module()
    neurons = sum(layer.out_features for _, layer in module.trunk.sbl_layers())
    monitor, watch = PIMonitor(), Watch()
    # these have fired for every token of a long life, the others for none
    always = torch.arange(neurons) % 2 == 1
    monitor.load_state_dict(
        monitor.state_dict()
        | {
            "fired_tokens_per_neuron": 1e9 * always.double(),
            "seen_tokens_per_neuron": torch.full((neurons,), 1e9, dtype=torch.float64),
        }
    )
    before = sbl_parameters(module)
    trainer = make_trainer(tmp_path, monitor, NeuronProtection(min_activation=0.9), watch, steps=1)
    trainer.fit(module, batches(module))
    activation = watch.activation[0]
    expected = (activation > 0) & ((activation >= 0.9) | ~always)
    assert (expected != (activation > 0)).any()
    for layer, part in module.trunk.neuron_slices.items():
        moved = before[f"{layer}.mu_weight"] != sbl_parameters(module)[f"{layer}.mu_weight"]
        assert torch.equal(moved.any(dim=1), expected[part])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_is_resumed_goes_on_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    always = ("abba",) * 4  # the loader keeps no place
    through = make_module(optimizer)
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = make_trainer(tmp_path, PIMonitor(), NeuronProtection(), save)
    trainer.fit(through, batches(through, always))
    resumed = make_module(optimizer)
    trainer = make_trainer(tmp_path, PIMonitor(), NeuronProtection())
    trainer.fit(resumed, batches(resumed, always), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert trainer.global_step == 4
    for name, expected in sbl_parameters(through).items():
        assert torch.equal(expected, sbl_parameters(resumed)[name]), name


def test_an_optimizer_that_moves_whole_tensors_is_refused(tmp_path: Path) -> None:
    module = make_module()
    module.optimizer = lambda groups: torch.optim.AdamW(groups)
    with pytest.raises(MisconfigurationException, match=r"AdamW moves whole tensors.*optim\.NeuronAdamW"):
        train(module, tmp_path, NeuronProtection())


def test_without_a_monitor_before_it_the_run_does_not_start(tmp_path: Path) -> None:
    module = make_module()
    with pytest.raises(MisconfigurationException, match="PIMonitor"):
        make_trainer(tmp_path, NeuronProtection(), PIMonitor()).fit(module, batches(module))


@pytest.mark.parametrize("share", [-0.1, float("nan")])
def test_a_negative_min_activation_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="min_activation"):
        NeuronProtection(min_activation=share)


def test_every_layer_of_the_trunk_is_protected() -> None:
    module = make_module()
    layers = [layer for layer in module.modules() if isinstance(layer, SparseBayesianLinear)]
    assert layers == [layer for _, layer in module.trunk.sbl_layers()]
