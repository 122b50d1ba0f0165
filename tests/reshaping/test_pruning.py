"""Which neurons go for a budget, on the checkpoint of a real training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from toy import ByteText, Patches, pack

from onn_lightning import OmniModule
from onn_lightning.callbacks import PIMonitor
from onn_lightning.checkpoint import description
from onn_lightning.flops import trunk_forward_flops
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping import reshape_checkpoint
from onn_lightning.reshaping.budget import Budget, measure, outline
from onn_lightning.reshaping.pruning import OutOfReachError, lifetimes, plan_pruning, removals

TRUNK = TrunkConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=[24, 40])
MODALITIES = [ByteText(), Patches()]
FREE: dict[str, Any] = {"min_tokens": 0, "min_neurons": 1}
ALL_NEURONS = 24 + 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Content of the checkpoint of a run of two steps, its neurons given lives of known activation."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        max_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[PIMonitor()],
    )
    batch = pack([[[("text", "hello")]], [[("patch", [0.1, 0.2, 0.3] * 2), ("text", "a")]]], MODALITIES)
    trainer.fit(OmniModule(TRUNK, MODALITIES), DataLoader([batch] * 2, batch_size=None))
    trainer.save_checkpoint(folder / "run.ckpt")
    checkpoint = description.read(folder / "run.ckpt")
    counts = checkpoint["callbacks"]["PIMonitor"]
    counts["seen_tokens_per_neuron"].fill_(1000.0)
    generator = torch.Generator().manual_seed(3)
    counts["fired_tokens_per_neuron"].copy_(
        torch.randperm(len(counts["fired_tokens_per_neuron"]), generator=generator)
    )
    return checkpoint


def size_after(checkpoint: dict[str, Any], budget: Budget, **limits: Any) -> Any:
    """The pruned checkpoint's size and plan, both taken from the real checkpoint."""
    plan = plan_pruning(checkpoint, budget, TRUNK, MODALITIES, **(FREE | limits))
    pruned = reshape_checkpoint(checkpoint, plan, MODALITIES)
    return measure(pruned, plan.trunk, MODALITIES, budget.row_length), plan, pruned


def test_the_neurons_of_least_lifetime_activation_go_first_over_all_blocks(trained: dict[str, Any]) -> None:
    now = measure(trained, TRUNK, MODALITIES, 512)
    _, plan, _ = size_after(trained, Budget(parameters=now.parameters - 10 * 66))
    lives = lifetimes(trained, TRUNK)
    gone = torch.cat([removal.activation for removal in removals(plan, lives)])
    every = torch.cat([life.activation for life in lives]).sort().values
    assert torch.equal(gone.sort().values, every[:10])  # a neuron has 4 * 16 weights, a bias and a threshold
    assert all(bool((kept.diff() > 0).all()) for kept in plan.neurons)  # the others stay in their order


@pytest.mark.parametrize("name", ["parameters", "memory", "flops"])
def test_as_few_go_as_the_budget_needs(trained: dict[str, Any], name: str) -> None:
    now = measure(trained, TRUNK, MODALITIES, 64)
    limit = 0.9 * getattr(now, name)
    size, plan, pruned = size_after(trained, Budget(**{name: limit}, row_length=64))
    assert getattr(size, name) <= limit
    a_neuron = (getattr(now, name) - getattr(size, name)) / (ALL_NEURONS - sum(plan.trunk.feed_forward_sizes))
    assert getattr(size, name) + a_neuron > limit
    module = OmniModule(plan.trunk, MODALITIES)
    description.restore_weights(module, pruned, "pruned")
    assert size.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert size.flops == trunk_forward_flops(module.trunk.config, 64)


def test_memory_is_that_of_the_stored_weights_and_optimizer_state(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    limit = 0.9 * measure(trained, TRUNK, MODALITIES, 512).memory
    size, _, pruned = size_after(trained, Budget(memory=limit))
    parts = {"weights": pruned["state_dict"], "state": [s["state"] for s in pruned["optimizer_states"]]}
    torch.save(parts, tmp_path / "parts.pt")
    stored = (tmp_path / "parts.pt").stat().st_size
    assert size.memory <= limit
    assert size.memory < stored < size.memory + 60_000  # file format: names, alignment
    assert measure(outline(pruned), _described(pruned), MODALITIES, 512) == size


def _described(checkpoint: dict[str, Any]) -> TrunkConfig:
    return description.restore(checkpoint, "pruned", MODALITIES)[0]


def test_several_limits_hold_together(trained: dict[str, Any]) -> None:
    now = measure(trained, TRUNK, MODALITIES, 16)
    budget = Budget(parameters=0.95 * now.parameters, flops=0.8 * now.flops, row_length=16)
    size, _, _ = size_after(trained, budget)
    assert budget.excess(size) == {}


def test_young_neurons_are_spared(trained: dict[str, Any]) -> None:
    now = measure(trained, TRUNK, MODALITIES, 512)
    checkpoint = {**trained, "callbacks": {"PIMonitor": {**trained["callbacks"]["PIMonitor"]}}}
    seen = trained["callbacks"]["PIMonitor"]["seen_tokens_per_neuron"].clone()
    with torch.device("meta"):
        slices = OmniModule(TRUNK, MODALITIES).trunk.neuron_slices
    seen[slices["0.moie.up"]] = 99
    checkpoint["callbacks"]["PIMonitor"]["seen_tokens_per_neuron"] = seen
    plan = plan_pruning(
        checkpoint, Budget(parameters=now.parameters - 660), TRUNK, MODALITIES, min_tokens=100, min_neurons=1
    )
    assert plan.trunk.feed_forward_sizes == (24, 30)


def test_a_budget_out_of_reach_says_how_far_pruning_gets(trained: dict[str, Any]) -> None:
    with pytest.raises(OutOfReachError, match="out of reach: pruning ends at") as error:
        plan_pruning(trained, Budget(parameters=10), TRUNK, MODALITIES, min_tokens=0, min_neurons=8)
    least = int(str(error.value).split("ends at ")[1].split(" ")[0].replace(",", ""))
    size, plan, _ = size_after(trained, Budget(parameters=least), min_neurons=8)
    assert plan.trunk.feed_forward_sizes == (8, 8) and size.parameters == least
    with pytest.raises(OutOfReachError, match="64 neurons are younger than 100,000 tokens"):
        plan_pruning(trained, Budget(parameters=10), TRUNK, MODALITIES)


def test_a_network_within_its_budget_is_left_alone(trained: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing to prune, the network fits its budget"):
        plan_pruning(trained, Budget(parameters=1e9), TRUNK, MODALITIES)


def test_a_checkpoint_without_lifetime_counts_is_refused(trained: dict[str, Any]) -> None:
    bare = {**trained, "callbacks": {}}
    with pytest.raises(ValueError, match="does not hold how often each neuron has fired"):
        plan_pruning(bare, Budget(parameters=10), TRUNK, MODALITIES)


def test_budgets_need_a_limit_above_nothing() -> None:
    with pytest.raises(ValueError, match="no budget"):
        Budget()
    with pytest.raises(ValueError, match="budget of memory is -1"):
        Budget(memory=-1)
