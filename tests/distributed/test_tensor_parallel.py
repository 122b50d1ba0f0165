"""Neurons and heads shared out over real processes, against the same tower in one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run_ranks
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from onn_lightning.distributed.tensor_parallel import parallelize_block, require_divisible
from onn_lightning.nn import MoIETrunk, SBLForm, TrunkConfig
from onn_lightning.nn.attention import KVCache
from onn_lightning.nn.recompute import Checkpointing
from onn_lightning.optim import MuonAdamW, NeuronAdamW, parameter_groups

W_GATE = 0.3
CONFIGS = {
    "normalised": TrunkConfig(hidden_size=12, num_layers=2, num_heads=2, intermediate_size=20),
    "grouped keys": TrunkConfig(hidden_size=12, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=6),
    "a key head for two ranks": TrunkConfig(
        hidden_size=12, num_layers=1, num_heads=6, num_kv_heads=3, head_dim=4, intermediate_size=12
    ),
    "reference form": TrunkConfig(
        hidden_size=12,
        num_layers=1,
        num_heads=2,
        intermediate_size=20,
        sbl=SBLForm(normalized=False, gate=0.0),
    ),
}
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "block", "selective")
HALVES = [slice(0, 2), slice(2, 4)]
OPTIMIZERS = {"adamw": NeuronAdamW, "muon": MuonAdamW}


@dataclass
class Case:
    """A tower with random weights, the same in every process, and one packed batch."""

    trunk: MoIETrunk
    x: Tensor
    target: Tensor
    positions: Tensor
    document_ids: Tensor

    def step(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        """One pass forward and back; everything that it leaves, whole."""
        x = self.x[rows].clone().requires_grad_()
        output = self.trunk(x, self.positions[rows], self.document_ids[rows])
        loss = (output.hidden - self.target[rows]).square().mean()
        (loss + W_GATE * output.auxiliary.gate_handle).backward()
        left = {
            "hidden": output.hidden.detach(),
            "input's gradient": x.grad,
            "surprise": output.auxiliary.surprise.grad,
            "activation": output.auxiliary.activation,
        }
        return left | {name: whole(parameter.grad) for name, parameter in self.trunk.named_parameters()}


def make_case(name: str) -> Case:
    config = CONFIGS[name]
    torch.manual_seed(1)
    trunk = MoIETrunk(config).double()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, target = torch.randn(2, 4, 8, config.hidden_size, dtype=torch.float64)
    document_ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, -1, -1]] * 2)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 1]] * 2)
    return Case(trunk, x, target, positions, document_ids)


def share_out(trunk: MoIETrunk, mesh: DeviceMesh) -> None:
    for block in trunk.blocks:
        parallelize_block(block, mesh)


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name] - value).norm() / value.norm()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


# ---- one step ------------------------------------------------------------------------------------------


def one_step(rank: int) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for name in CONFIGS:
        expected = make_case(name).step()
        case = make_case(name)
        share_out(case.trunk, mesh)
        for key, parameter in case.trunk.named_parameters():
            assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),), key
            assert parameter.to_local().shape[0] == parameter.shape[0] // 2, key
        for mode in CHECKPOINTING:
            case.trunk.checkpointing = mode
            case.trunk.zero_grad()
            assert_equal(case.step(), expected)

    generate_alike(mesh)
    stay_close_under_autocast(mesh)


def generate_alike(mesh: DeviceMesh) -> None:
    """Token by token, with a cache of the own heads."""
    case = make_case("grouped keys")
    expected = case.trunk(case.x, torch.arange(8).expand(4, 8)).hidden
    share_out(case.trunk, mesh)
    cache = KVCache(num_layers=1)
    hidden = [case.trunk(case.x[:, t : t + 1], torch.full((4, 1), t), cache=cache).hidden for t in range(8)]
    assert_equal({"hidden": torch.cat(hidden, dim=1)}, {"hidden": expected})


def stay_close_under_autocast(mesh: DeviceMesh) -> None:
    steps = []
    for ranks in (1, 2):
        case = make_case("grouped keys")
        case.trunk, case.x, case.target = case.trunk.float(), case.x.float(), case.target.float()
        if ranks > 1:
            share_out(case.trunk, mesh)
        with torch.autocast("cpu", torch.bfloat16):
            steps.append(case.step(slice(0, 1)))
    assert_equal(steps[1], steps[0], tolerance=0.02)


@pytest.mark.slow
def test_a_tower_in_two_parts_leaves_what_a_whole_one_leaves() -> None:
    run_ranks(one_step)


def test_sizes_that_do_not_divide_are_named_in_one_error() -> None:
    trunk = MoIETrunk(CONFIGS["normalised"])
    require_divisible(trunk, ranks=2, data_shards=2)
    with pytest.raises(ValueError, match=r"num_heads 2 by 3, the 20 neurons of moie\.up by 6; change"):
        require_divisible(trunk, ranks=3, data_shards=2)


# ---- training ------------------------------------------------------------------------------------------


def train(case: Case, optimizer: Any, parts: list[slice], resting: bool) -> None:
    """Three steps on the mean of the parts' losses; in each of them other neurons may rest."""
    for step in range(3):
        optimizer.zero_grad()
        for rows in parts:
            case.step(rows)
        for parameter in case.trunk.parameters():
            assert parameter.grad is not None
            parameter.grad.div_(len(parts))
        if resting:
            generator = torch.Generator().manual_seed(step)
            fired = [
                (layer, torch.rand(layer.out_features, generator=generator) < 0.7)
                for _, layer in case.trunk.sbl_layers()
            ]
            optimizer.set_firing(
                {parameter: mask for layer, mask in fired for parameter in layer.parameters()}
            )
        optimizer.step()


def trained_in_parts(rank: int, folder: str) -> None:
    """Train over 2 x 2 ranks; leave a checkpoint of each optimizer's run."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    rows = HALVES[mesh["data"].get_local_rank()]
    for name, make in OPTIMIZERS.items():
        case = make_case("grouped keys")
        share_out(case.trunk, mesh["tensor"])
        for block in case.trunk.blocks:
            fully_shard(block, mesh=mesh["data"])
        fully_shard(case.trunk, mesh=mesh["data"])
        optimizer = make(parameter_groups(case.trunk), lr=0.05)
        train(case, optimizer, [rows], resting=name == "adamw")
        weights, state = get_state_dict(case.trunk, optimizer)
        dcp.save({"weights": weights, "optimizer": state}, checkpoint_id=Path(folder) / name)


@pytest.mark.slow
def test_training_in_parts_ends_where_training_as_a_whole_ends(tmp_path: Path) -> None:
    run_ranks(trained_in_parts, str(tmp_path), count=4)
    for name, make in OPTIMIZERS.items():
        case = make_case("grouped keys")
        start = {key: value.clone() for key, value in case.trunk.state_dict().items()}
        optimizer = make(parameter_groups(case.trunk), lr=0.05)
        train(case, optimizer, HALVES, resting=name == "adamw")
        weights, state = get_state_dict(case.trunk, optimizer)
        expected = {key: value.clone() for key, value in flat(weights, state).items()}
        dcp.load({"weights": weights, "optimizer": state}, checkpoint_id=tmp_path / name)
        assert_equal(flat(weights, state), expected, 1e-10 if name == "adamw" else 1e-3)
        assert all((weights[key] - start[key]).norm() > 0.01 for key in start)


def flat(weights: dict[str, Any], state: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of both by name; biases begin at zero and are compared with their gradients' moments."""
    moments = {
        f"{parameter}.{moment}": value
        for parameter, moments in state["state"].items()
        for moment, value in moments.items()
    }
    return {**weights, **moments}
