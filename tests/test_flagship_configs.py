"""The configs of the large models: parsed as `onn fit` parses them, built without data, memory or a trainer.

Notable: parameters are all that a network has, tables included; an SBL's mean and uncertainty count as two.
"""

from __future__ import annotations

import pytest

from datamodules import PreparedSource
from onn_lightning.cli.data_config import build_outline
from onn_lightning.cli.main import main

SIZES = {"bonsai_0.1b": 0.1e9, "omni_3b": 3e9, "omni_7b": 7e9}


@pytest.mark.parametrize("name", SIZES)
def test_a_flagship_has_the_parameters_that_its_name_says(name: str) -> None:
    outline = build_outline("onn estimate", [name], ())
    parameters = list(outline.model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) == pytest.approx(SIZES[name], rel=0.05)


@pytest.mark.parametrize("name", SIZES)
def test_a_flagship_reads_all_modalities_in_rows_of_its_native_context(name: str) -> None:
    outline = build_outline("onn estimate", [name], ())
    data, trunk = outline.data, outline.model.trunk.config
    assert [modality.name for modality in data.modalities] == ["text", "image", "audio"]
    assert data.row_length == 32_768
    assert trunk.rope_theta == 1e6
    assert outline.model.heads["text"].weight.shape[0] == 20_752  # the built-in inventory
    sources = [source for split in ("train", "validation") for source in data.splits[split].values()]
    assert all(isinstance(source, PreparedSource) for source in sources)
    assert outline.trainer["precision"] == "bf16-mixed"


@pytest.mark.parametrize("name", ["omni_3b", "omni_7b"])
def test_the_large_flagships_have_heads_of_128_and_share_keys(name: str) -> None:
    trunk = build_outline("onn estimate", [name], ()).model.trunk.config
    assert trunk.head_dim == 128
    assert trunk.num_kv_heads is not None and trunk.num_kv_heads < trunk.num_heads


@pytest.mark.parametrize("name", SIZES)
def test_a_flagship_is_a_config_that_fit_understands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", name, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "onn_lightning.callbacks.NeuronProtection" in printed
    assert "onn_lightning.regulation.ConsolidatingWeight" in printed
