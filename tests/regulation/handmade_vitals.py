"""Vitals made by hand, sane or broken at will, for tests of the regulators."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from onn_lightning.regulation import Vitals

MODALITIES = ("text", "patch")
NEURONS = 6
SCALARS = ("main_loss", "tau", "surprise", "activation", "gate", "prior_std", "pi", "pi_ema")
VECTORS = {
    "modality_loss": 2,
    "modality_tau": 2,
    "modality_pi": 2,
    "modality_targets": 2,
    "layer_pi": 1,
    "neuron_surprise": NEURONS,
    "neuron_activation": NEURONS,
}


def vitals(**figures: Any) -> Vitals:
    """A sane step, some of whose figures are replaced (numbers or lists of numbers)."""
    sane: dict[str, Any] = {
        "main_loss": 2.0,
        "tau": 2.0,
        "surprise": 0.01,
        "activation": 0.5,
        "gate": -1.0,
        "prior_std": 1.0,
        "pi": 0.36,
        "pi_ema": 0.36,
        "modality_loss": [2.0, 0.5],
        "modality_tau": [2.0, 0.0],
        "modality_pi": [0.36, 0.7],
        "modality_targets": [10.0, 4.0],
        "layer_pi": [0.36],
        "neuron_surprise": [0.01] * NEURONS,
        "neuron_activation": [0.5] * NEURONS,
    }
    unknown = set(figures) - set(sane)
    assert not unknown, unknown
    tensors: dict[str, Tensor] = {
        name: torch.tensor(value, dtype=torch.float32) for name, value in (sane | figures).items()
    }
    made = Vitals(step=1, modalities=MODALITIES, **tensors)
    assert {field.name for field in fields(made)} == {"step", "modalities", *SCALARS, *VECTORS}
    return made


_ODD = st.sampled_from(
    [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e30, -1e30, 1e-40, 1.0, 1e38]
)
FIGURE = st.one_of(_ODD, st.floats(width=32), st.floats(0, 1, width=32), st.floats(0, 12, width=32))
ANY_VITALS = st.fixed_dictionaries(
    {name: FIGURE for name in SCALARS}
    | {name: st.lists(FIGURE, min_size=size, max_size=size) for name, size in VECTORS.items()}
).map(lambda figures: vitals(**figures))
"""Any float whatever in any field."""

BROKEN = st.sampled_from([float("nan"), float("inf"), -float("inf")])
BROKEN_VITALS = BROKEN.map(
    lambda figure: vitals(
        **{name: figure for name in SCALARS}, **{name: [figure] * size for name, size in VECTORS.items()}
    )
)
"""A step in which nothing is finite."""
