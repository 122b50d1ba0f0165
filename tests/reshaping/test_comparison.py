"""The check before a reshaped checkpoint is written: it sees a difference, and what is no number."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from trained_case import MODALITIES, some_batch

from onn_lightning import OmniModule
from onn_lightning.nn import TrunkConfig
from onn_lightning.reshaping.comparison import compare, compare_trunks


@pytest.fixture
def module() -> OmniModule:
    torch.manual_seed(0)
    return OmniModule(TrunkConfig(16, 2, 4, intermediate_size=8), MODALITIES)


def test_a_network_differs_from_itself_by_nothing(module: OmniModule) -> None:
    difference = compare(module, module, some_batch(), some_batch(), {})
    assert difference.largest == 0 and difference.scale > 0 and difference.is_rounding(torch.float32)
    assert compare_trunks(module.trunk, module.trunk).largest == 0


@pytest.mark.parametrize("value", [3.0, math.nan, math.inf])
def test_one_other_weight_is_seen(module: OmniModule, value: float) -> None:
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.heads["text"].projection.weight[0, 0] = value
        other.trunk.blocks[1].moie.down.mu_bias[0] = value
    assert not compare(module, other, some_batch(), some_batch(), {}).is_rounding(torch.float32)
    assert not compare_trunks(module.trunk, other.trunk).is_rounding(torch.float32)
    assert not compare_trunks(other.trunk, other.trunk).is_rounding(torch.float32) or value == 3.0


def test_only_symbols_that_both_know_are_compared(module: OmniModule) -> None:
    symbols = torch.arange(258)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.heads["text"].weight[7] += 1  # a symbol that no token of the batch shows
    assert not compare(module, other, some_batch(), some_batch(), {"text": symbols}).is_rounding(
        torch.float32
    )
    symbols[7] = -1
    assert compare(module, other, some_batch(), some_batch(), {"text": symbols}).largest == 0
