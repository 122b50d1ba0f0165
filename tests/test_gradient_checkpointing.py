"""The callback in a real run: memory is all that it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import PARTS, make_module, moving, watch

from onn_lightning.callbacks import CompileBlocks, GradientCheckpointing


@pytest.mark.parametrize("mode", ["block", "selective"])
def test_a_checkpointed_run_has_the_same_names_weights_and_figures(mode: str, tmp_path: Path) -> None:
    plain, checkpointed = make_module(optimizer=moving), make_module(optimizer=moving)
    expected, _ = watch(PARTS, tmp_path, plain)
    found, _ = watch(PARTS, tmp_path, checkpointed, callbacks=[GradientCheckpointing(mode)])
    assert checkpointed.trunk.checkpointing == mode
    weights, others = plain.state_dict(), checkpointed.state_dict()
    assert list(others) == list(weights)
    assert [name for name, _ in checkpointed.trunk.sbl_layers()] == [
        name for name, _ in plain.trunk.sbl_layers()
    ]
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-5, atol=1e-6)
    for figures, others in zip(expected.logged, found.logged, strict=True):
        assert others == pytest.approx(figures, rel=1e-5, abs=1e-7)


def test_compiled_blocks_are_refused(tmp_path: Path) -> None:
    callbacks = [GradientCheckpointing("block"), CompileBlocks(backend="eager")]
    with pytest.raises(MisconfigurationException, match="CompileBlocks do not go together"):
        watch(PARTS, tmp_path, callbacks=callbacks)
