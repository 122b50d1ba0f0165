"""Gradient checkpointing: nothing changes but memory, also where the recomputation rounds otherwise."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from plain_reference import assert_same_gradients, randomize, relative_error
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from trunk_case import CONFIGS, Case, make_case

from onn_lightning.nn import KVCache, MoIETrunk, SBLForm, SparseBayesianLinear, TrunkConfig
from onn_lightning.nn.norm import rms_normalize
from onn_lightning.nn.recompute import Checkpointing

MODES: list[Checkpointing] = ["block", "selective"]


def gradients(trunk: MoIETrunk) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["normalised", "reference form", "grouped keys"])
def test_checkpointing_changes_no_gradient_and_no_surprise(name: str, mode: Checkpointing) -> None:
    case = make_case(CONFIGS[name])
    surprise = case.backward()
    expected = gradients(case.trunk)
    case.trunk.zero_grad()
    case.trunk.checkpointing = mode
    assert relative_error(case.backward(), surprise) < 1e-12
    assert_same_gradients(case.trunk, expected, 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_goes_through(mode: Checkpointing) -> None:
    trunk = MoIETrunk(CONFIGS["normalised"])
    trunk.checkpointing = mode
    x = torch.randn(2, 0, 12, requires_grad=True)
    empty = torch.zeros(2, 0, dtype=torch.int64)
    output = trunk(x, empty, empty)
    (output.hidden.sum() + output.auxiliary.gate_handle).backward()
    assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("mode", MODES)
def test_under_autocast_every_gradient_keeps_all_its_bits(mode: Checkpointing) -> None:
    case = make_case(CONFIGS["normalised"])
    trunk, x = case.trunk.float(), case.x.float()
    found = []
    for checkpointing in ("none", mode):
        trunk.zero_grad()
        trunk.checkpointing = checkpointing
        with torch.autocast("cpu", torch.bfloat16):
            output = trunk(x, case.positions, case.document_ids)
        (case.loss(output.hidden.float()) + 0.3 * output.auxiliary.gate_handle).backward()
        found.append(gradients(trunk))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


class Reordered(SparseBayesianLinear):
    """Sums up its products in another order at every other call, as another kernel may."""

    calls = 0

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens, weight, bias = super()._operands(x)
        seed = torch.Generator().manual_seed(self.calls % 2)
        self.calls += 1
        order = torch.randperm(self.in_features, generator=seed)
        return tokens[:, order], weight[:, order], bias


def on_the_edge() -> Case:
    """One block in float32; each of its first MoIE neurons has a score of about 0 for one of four tokens."""
    trunk = MoIETrunk(TrunkConfig(hidden_size=64, num_layers=1, num_heads=1, intermediate_size=96))
    block = trunk.blocks[0]
    up = block.moie.up = Reordered(64, 96, score_scale=1.0)
    generator = torch.manual_seed(2)
    randomize(trunk, generator)
    x, target = torch.randn(2, 1, 4, 64, generator=generator)
    case = Case(trunk, x, torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.int64), target)
    with torch.no_grad():
        read = rms_normalize(x + block.attention(rms_normalize(x), trunk.rotary(case.positions)))[0]  # [T, D]
        keys = up.mu_weight * F.softplus(up.sigma_weight)
        neurons = torch.arange(up.out_features)
        up.gate_param.copy_((read @ keys.T)[neurons % 4, neurons])
    return case


def step(case: Case) -> dict[str, Tensor]:
    """Gradients of one step, by the names that parameters have without wrappers."""
    case.trunk.zero_grad()
    case.trunk.blocks[0].moie.up.calls = 0
    case.backward()
    return {name.replace("_checkpoint_wrapped_module.", ""): g for name, g in gradients(case.trunk).items()}


def test_where_recomputation_rounds_otherwise_only_decisions_kept_outside_give_the_right_gradient() -> None:
    case = on_the_edge()
    expected = step(case)  # of the decisions that the first pass takes
    gate = "blocks.0.moie.up.sigma_weight"
    for mode in MODES:
        case.trunk.checkpointing = mode
        found = step(case)
        assert all(relative_error(found[name], expected[name]) < 1e-5 for name in expected)
    assert case.trunk.blocks[0].moie.up.calls == 2  # the last one, too, has recomputed
    case.trunk.checkpointing = "none"
    case.trunk.blocks[0] = checkpoint_wrapper(case.trunk.blocks[0])  # the gate inside, and no error
    assert relative_error(step(case)[gate], expected[gate]) > 0.05


def live_bits() -> int:
    """Packed decisions of so many SBLs are in memory."""
    # by type(): a weak proxy that some library left behind answers isinstance() with an error
    tensors = (item for item in gc.get_objects() if issubclass(type(item), Tensor))
    return sum(tensor.dtype == torch.uint8 for tensor in tensors)


def test_the_bits_of_a_block_are_freed_by_its_own_backward() -> None:
    case = make_case(TrunkConfig(hidden_size=12, num_layers=4, num_heads=2))
    case.trunk.checkpointing = "block"
    counts: list[int] = []
    before = live_bits()

    def watch(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].register_hook(lambda gradient: counts.append(live_bits() - before))

    case.x.requires_grad_()
    hooks = [block.register_forward_pre_hook(watch) for block in case.trunk.blocks]
    hidden = case.trunk(case.x, case.positions, case.document_ids).hidden
    for hook in hooks:
        hook.remove()
    assert live_bits() - before == 16  # four blocks with four SBLs each
    case.loss(hidden).backward()
    assert counts == [12, 8, 4, 0]  # those below the block that is done


def test_without_gradients_and_with_a_cache_nothing_is_checkpointed() -> None:
    case = make_case(CONFIGS["normalised"])
    trunk, x, positions = case.trunk, case.x, torch.arange(8).expand(2, 8)
    expected = trunk(x, positions)
    trunk.checkpointing = "block"
    with torch.no_grad():
        assert torch.equal(trunk(x, positions).hidden, expected.hidden)
    cache = KVCache(2)
    cached = trunk(x, positions, cache=cache)
    cached.hidden.sum().backward()  # a recomputation would write to the cache once more
    assert len(cache) == 8 and torch.equal(cached.hidden, expected.hidden)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpointing 'full' is unknown: choose one of .*selective"):
        make_case(CONFIGS["normalised"]).trunk.checkpointing = "full"


def test_under_bfloat16_autocast_keys_are_formed_in_float32_and_rounded_once() -> None:
    torch.manual_seed(0)
    layer = SBLForm(sigma=0.7).build(16, 24)
    x = torch.randn(5, 16)
    keys = (layer.mu_weight * F.softplus(layer.sigma_weight)).bfloat16()
    mu, gate = layer.mu_weight.bfloat16(), layer.gate_param.bfloat16()
    expected = F.relu(F.linear(x.bfloat16(), keys, -gate)) * F.linear(x.bfloat16(), mu)
    in_bfloat16 = mu * F.softplus(layer.sigma_weight.bfloat16())
    assert not torch.equal(in_bfloat16, keys)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
