"""A snapshot is what was there at its moment, shared where that was shared."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from onn_lightning.checkpoint.snapshot import snapshot


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight[:1].expand(4, 3))  # a view with strides of 0
    optimizer = torch.optim.AdamW([model[0].weight], lr=0.1)
    model[0].weight.grad = torch.ones(4, 3)
    optimizer.step()
    whole = torch.arange(6.0)
    return {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "whole": whole,
        "tied": whole,
        "part": (whole[2:], {"turned": whole.view(2, 3).t()}),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.zeros(0),
        "plain": ["text", 1, 2.5, None],
    }


def as_file(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_it_writes_the_same_bytes_as_the_original_did_before_that_moved_on() -> None:
    original = state()
    taken, written = snapshot(original), as_file(original)
    for tensor in (original["whole"], original["half"], original["state_dict"]["0.bias"]):
        tensor.add_(1)
    original["optimizer_states"][0]["state"][0]["exp_avg"].mul_(2)
    original["plain"].append("later")
    assert as_file(taken) == written != as_file(original)


def test_what_is_shared_stays_shared() -> None:
    taken = snapshot(state())
    assert taken["tied"] is taken["whole"]
    taken["whole"][4] = 100.0
    assert taken["part"][0][2] == taken["part"][1]["turned"][1, 1] == 100.0
    assert taken["state_dict"]["0.weight"].data_ptr() == taken["state_dict"]["1.weight"].data_ptr()


def test_other_kinds_of_tensors_are_copied_too() -> None:
    kinds = {
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    taken = snapshot(kinds)
    with torch.no_grad():
        kinds["parameter"].add_(1)
    assert torch.equal(taken["sparse"].to_dense(), torch.eye(3))
    assert taken["conjugate"][0] == 1 - 2j
    assert torch.equal(taken["parameter"], torch.ones(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_a_gpu_it_is_of_the_moment_of_the_call() -> None:
    weights = torch.zeros(50_000_000, device="cuda")
    taken = snapshot({"weights": weights, "part": weights[1:]})
    weights.add_(1)
    assert taken["weights"].is_pinned() and not taken["weights"].any()
    assert taken["part"].data_ptr() == taken["weights"].data_ptr() + 4
