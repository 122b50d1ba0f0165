"""`OmniModule`: what a step adds up and logs; accumulation, absent modalities, held-out data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy, softplus
from torch.utils.data import DataLoader
from toy import ByteText, Patches, pack

from onn_lightning import Batch, OmniModule
from onn_lightning.callbacks import PIMonitor
from onn_lightning.nn import KVCache, TrunkConfig, scatter_embeddings
from onn_lightning.nn.loss import gaussian_kl
from onn_lightning.optim import MuonAdamW

TRUNK = TrunkConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24)
MODALITIES = [ByteText(), Patches()]
PICTURE = [0.1, -0.4, 0.3, 1.0, 0.2, -0.8]
MIXED = [[("patch", PICTURE), ("text", "ab")]]
SPEECHLESS = [[("text", "hello")], [("text", "you")]]


def make_module(**options: Any) -> OmniModule:
    torch.manual_seed(0)
    module = OmniModule(TRUNK, copy.deepcopy(MODALITIES), **options)
    torch.nn.init.normal_(module.heads["patch"].projection.weight, std=0.1)  # a head at zero hides its inputs
    return module


def batch_of(*rows: list[Any], source: str = "") -> Batch:
    return pack(rows, MODALITIES, source=source)


class Listener(Callback):
    """Keeps what every step logged, and every parameter's gradient as the optimizer sees it."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def train(
    module: OmniModule, batches: list[Batch], folder: Path, **settings: Any
) -> tuple[Trainer, Listener]:
    listener = Listener()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        max_epochs=1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PIMonitor(), listener, *settings.pop("callbacks", [])],
        enable_checkpointing=settings.pop("enable_checkpointing", False),
        **settings,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer, listener


def text_statistics(
    module: OmniModule, batch: Batch, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, entropy) of every supervised byte, from all logits at once."""
    tokens = batch.modalities["text"]
    logits = module.heads["text"].logits(hidden.flatten(0, 1)[tokens.source_indices])
    return (
        cross_entropy(logits, tokens.targets, reduction="none"),
        torch.distributions.Categorical(logits=logits).entropy(),
    )


def by_hand(
    module: OmniModule, batch: Batch, text_weight: float = 1.0, patch_weight: float = 1.0
) -> dict[str, Any]:
    """Every figure of one step, from its definition."""
    output = module(batch)
    text_loss, entropy = text_statistics(module, batch, output.hidden)
    patches = batch.modalities["patch"]
    predicted = module.heads["patch"].projection(output.hidden.flatten(0, 1)[patches.source_indices])
    patch_loss = (predicted - patches.targets).square().mean()
    main = text_weight * text_loss.mean() + patch_weight * patch_loss
    layers = [layer for _, layer in module.trunk.sbl_layers()]
    tau = entropy.mean().detach()
    surprise = torch.autograd.grad(main, output.auxiliary.surprise, retain_graph=True)[0]
    shares = [surprise[part] / surprise[part].sum() for part in module.trunk.neuron_slices.values()]
    return {
        "main": main,
        "kl": gaussian_kl([(sbl.mu_weight, sbl.sigma_weight) for sbl in layers], tau.clamp(0.1, 1.0)),
        "handle": output.auxiliary.gate_handle,
        "train/text_loss": text_loss.mean(),
        "train/patch_loss": patch_loss,
        "train/main_loss": main,
        "train/tau": tau,
        "train/prior_std": tau.clamp(0.1, 1.0),
        "train/surprise": surprise.mean(),
        "train/gate_loss": -sum((share * share.log()).nansum() for share in shares),
        "train/pi": torch.exp(-0.5 * (main / tau + 2.0 * surprise.mean())),
        "train/pi_ema": torch.exp(-0.5 * (main / tau + 2.0 * surprise.mean())),
        "train/pi/text": torch.exp(-0.5 * (text_loss.mean() / tau + 2.0 * surprise.mean())),
        "train/pi/patch": torch.exp(-0.5 * (patch_loss / tau + 2.0 * surprise.mean())),
        "train/pi_block/1": torch.exp(-0.5 * (main / tau + 2.0 * surprise[len(surprise) // 2 :].mean())),
        "train/activation_rate": output.auxiliary.activation.mean(),
        "train/sigma": torch.cat([softplus(sbl.sigma_weight).flatten() for sbl in layers]).mean(),
        "train/gate": torch.cat([sbl.gate_param for sbl in layers]).mean(),
    }


def test_every_logged_figure_equals_its_definition(tmp_path: Path) -> None:
    batch = batch_of(MIXED, SPEECHLESS)
    module = make_module(pi_alpha=0.5, pi_gamma=2.0, w_gate=0.2)
    expected = by_hand(module, batch)
    _, listener = train(module, [batch], tmp_path)
    logged = listener.logged[0]
    assert logged["train/kl_loss"] == pytest.approx(expected["kl"].item(), rel=1e-4)
    for name, value in expected.items():
        if name.startswith("train/"):
            assert logged[name] == pytest.approx(value.item(), rel=1e-4), name
    assert 0 < logged["train/pi"] < 1


def test_the_free_energy_weighs_main_gate_and_kl_terms(tmp_path: Path) -> None:
    batch = batch_of(MIXED)
    module = make_module(loss_weights={"text": 0.5, "patch": 3.0}, w_gate=0.2, w_kl=0.7)
    parts = by_hand(module, batch, 0.5, 3.0)
    free_energy = parts["main"] + 0.2 * parts["handle"] + 0.7 * parts["kl"]
    names, parameters = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(free_energy, parameters)
    _, listener = train(module, [batch], tmp_path)
    assert listener.logged[0]["train/main_loss"] == pytest.approx(parts["main"].item(), rel=1e-5)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(listener.gradients[0][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_gate_weight_changed_between_steps_is_the_one_in_force(tmp_path: Path) -> None:
    """The weights are buffers that a policy writes to; a zero weight leaves the gates to the main loss."""
    gradients = []
    for weight in (0.0, 5.0):
        module = make_module(w_gate=1.0)
        module.w_gate.fill_(weight)
        _, listener = train(module, [batch_of(MIXED)], tmp_path)
        gradients.append(listener.gradients[0]["trunk.blocks.0.moie.up.gate_param"])
    assert not torch.allclose(*gradients)
    assert {"w_gate", "w_kl", "loss_weights"} <= set(make_module().state_dict())


def test_a_modality_absent_from_a_batch_gets_zero_gradients_and_costs_nothing(tmp_path: Path) -> None:
    """Zero and not None: every rank then reduces the same parameters, whatever its batch holds."""
    _, listener = train(make_module(), [batch_of(SPEECHLESS)], tmp_path)
    assert listener.logged[0]["train/patch_loss"] == 0
    gradients = listener.gradients[0]
    assert set(gradients) == {name for name, _ in make_module().named_parameters()}
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert bool((gradient == 0).all()) == (".patch." in name), name


def test_a_batch_of_padding_alone_is_harmless(tmp_path: Path) -> None:
    _, listener = train(make_module(), [pack([[]], MODALITIES)], tmp_path)
    assert listener.logged[0]["train/main_loss"] == 0
    assert all(gradient.isfinite().all() for gradient in listener.gradients[0].values())


def test_a_modality_that_is_only_read_has_no_head_and_no_weight() -> None:
    module = OmniModule(TRUNK, [ByteText(), Patches(predicted=False)])
    assert list(module.heads) == ["text"] and module.loss_weights.shape == (1,)


def test_accumulation_averages_the_gradients_of_its_micro_batches(tmp_path: Path) -> None:
    batches = [batch_of(MIXED), batch_of(SPEECHLESS)]
    alone = []
    for batch in batches:
        _, listener = train(make_module(w_gate=0.2), [batch], tmp_path)
        alone.append(listener)
    _, together = train(make_module(w_gate=0.2), batches, tmp_path, accumulate_grad_batches=2)
    assert len(together.gradients) == 1
    for name, gradient in together.gradients[0].items():
        mean = (alone[0].gradients[0][name] + alone[1].gradients[0][name]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-7, msg=name)


def test_bfloat16_training_stays_finite(tmp_path: Path) -> None:
    _, listener = train(make_module(), [batch_of(MIXED)] * 3, tmp_path, precision="bf16-mixed")
    assert all(torch.isfinite(torch.tensor(list(logged.values()))).all() for logged in listener.logged)
    assert all(gradient.isfinite().all() for step in listener.gradients for gradient in step.values())


def test_training_lowers_the_loss_of_what_it_sees(tmp_path: Path) -> None:
    def quick(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=0.02)

    batches = [batch_of(MIXED, SPEECHLESS)] * 25
    _, listener = train(make_module(warmup_steps=2, optimizer=quick), batches, tmp_path)
    assert listener.logged[-1]["train/main_loss"] < 0.5 * listener.logged[0]["train/main_loss"]


def test_targets_are_predicted_from_the_state_before_them() -> None:
    """Changing the last token moves no loss: nothing is predicted from it, and nothing before it sees it."""
    module = make_module().eval()
    batch = batch_of([[("text", "abc")]])
    before = module.predict_step(batch, 0)["text"]
    last = batch.modalities["text"].features
    last[-1] = ord("z")
    torch.testing.assert_close(module.predict_step(batch, 0)["text"], before, rtol=0.0, atol=0.0)


def test_the_cache_gives_the_states_of_the_whole_document() -> None:
    module = make_module().eval()
    batch = pack([[[("text", "abcdefgh")]]], [ByteText()], length=10)
    with torch.no_grad():
        expected = module(batch).hidden
        cache, hidden = KVCache(TRUNK.num_layers), []
        for index in range(10):
            tokens = batch.modalities["text"]
            part = type(tokens)(tokens.features[index : index + 1], torch.tensor([0]))
            single = Batch(
                batch.modality_ids[:, :1],
                batch.positions[:, index : index + 1],
                batch.document_ids[:, :1],
                {"text": part},
            )
            hidden.append(module(single, cache).hidden)
    torch.testing.assert_close(torch.cat(hidden, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_positions_are_added_to_the_tokens_alike() -> None:
    module = make_module()
    batch = batch_of(MIXED)
    seen: list[torch.Tensor] = []
    module.trunk.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    module(batch)
    tokens = scatter_embeddings(batch, module.embedders, TRUNK.hidden_size)
    torch.testing.assert_close(seen[0], tokens + module.positions(batch.positions))


def held_out(stage: str, module: OmniModule, batches: list[Batch], folder: Path) -> dict[str, float]:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    getattr(trainer, stage)(module, DataLoader(batches, batch_size=None), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(("stage", "prefix"), [("validate", "val"), ("test", "test")])
def test_held_out_figures_are_kept_apart_by_source(stage: str, prefix: str, tmp_path: Path) -> None:
    module = make_module()
    batches = [
        batch_of(SPEECHLESS, source="plays"),
        batch_of(MIXED, source="digits.png"),
        batch_of([[("text", "more of it")]], source="plays"),
    ]
    figures = held_out(stage, module, batches, tmp_path)
    with torch.no_grad():
        losses = [text_statistics(module, batch, module(batch).hidden)[0] for batch in batches]
    plays = torch.cat((losses[0], losses[2]))
    num_bytes = len("hello") + len("you") + len("more of it")
    assert figures[f"{prefix}/plays/text_loss"] == pytest.approx(float(plays.mean()), rel=1e-5)
    bits = float(plays.sum()) / num_bytes / torch.log(torch.tensor(2.0))
    assert figures[f"{prefix}/plays/bits_per_byte"] == pytest.approx(float(bits), rel=1e-5)
    assert figures[f"{prefix}/digits.png/text_loss"] == pytest.approx(float(losses[1].mean()), rel=1e-5)
    assert f"{prefix}/plays/exact_match" not in figures and f"{prefix}/digits.png/exact_match" in figures


def test_held_out_figures_start_anew_in_every_evaluation(tmp_path: Path) -> None:
    module = make_module()
    first = held_out("validate", module, [batch_of(SPEECHLESS, source="plays")], tmp_path)
    held_out("validate", module, [batch_of(MIXED, source="plays")], tmp_path)
    assert held_out("validate", module, [batch_of(SPEECHLESS, source="plays")], tmp_path) == pytest.approx(
        first
    )


def test_two_modalities_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two modalities share a name"):
        OmniModule(TRUNK, [ByteText(), ByteText()])


def test_a_loss_weight_for_an_unknown_modality_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss_weights names \['txet'\], the run has \['patch', 'text'\]"):
        OmniModule(TRUNK, MODALITIES, loss_weights={"txet": 1.0})


@pytest.mark.parametrize("optimizer", ["default", "muon"])
def test_a_run_resumed_from_its_checkpoint_repeats_the_losses_of_one_in_one_go(
    optimizer: str, tmp_path: Path
) -> None:
    options = {"warmup_steps": 2, "w_gate": 0.1} | ({"optimizer": MuonAdamW} if optimizer == "muon" else {})
    batches = [batch_of(MIXED), batch_of(SPEECHLESS)] * 3
    _, through = train(make_module(**options), batches, tmp_path / "through", max_steps=6)

    keep = ModelCheckpoint(tmp_path / "broken", save_top_k=-1, every_n_train_steps=3)
    train(make_module(**options), batches, tmp_path, max_steps=6, callbacks=[keep], enable_checkpointing=True)
    listener = Listener()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=6,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[PIMonitor(), listener],
    )
    halfway = next((tmp_path / "broken").glob("*step=3.ckpt"))
    resumed = make_module(**options)
    trainer.fit(resumed, DataLoader(batches[3:], batch_size=None), ckpt_path=halfway, weights_only=True)
    assert [step["train/main_loss"] for step in listener.logged] == [
        step["train/main_loss"] for step in through.logged[3:]
    ]
