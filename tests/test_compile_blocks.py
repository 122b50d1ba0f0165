"""Compiled blocks: the same training as without, one graph a shape, nothing compiled twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from monitored import MODALITIES, PARTS, assert_same_figures, make_module, moving, watch
from ranks import run_ranks
from torch.utils.data import DataLoader

from onn_lightning import OmniModule
from onn_lightning.callbacks import CompileBlocks, LossReweighting
from onn_lightning.distributed import FSDP2Strategy
from onn_lightning.generation.session import Session
from onn_lightning.nn import TrunkConfig
from onn_lightning.regulation import LossSigmoidWeight

TRACED = CompileBlocks(backend="aot_eager")
"""All of torch.compile but the making of kernels."""


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs made of blocks so far, less the one of the trial at the beginning of a run; none was broken."""
    assert not torch._dynamo.utils.counters["graph_break"]
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] - 1


def learning_module() -> OmniModule:
    return make_module(optimizer=moving)


def test_compiled_blocks_train_as_plain_ones_do_under_the_same_names(tmp_path: Path) -> None:
    """The one-pass surprise and the gradients of the gates included."""
    plain, compiled = learning_module(), learning_module()
    expected, _ = watch(PARTS, tmp_path, plain)
    got, _ = watch(PARTS, tmp_path, compiled, callbacks=[TRACED])
    assert graphs() == 2  # one for each of the two widths of feed-forward
    for one, other in zip(got.vitals, expected.vitals, strict=True):
        assert_same_figures(one, other)
    trained = plain.state_dict()
    assert compiled.state_dict().keys() == trained.keys()
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=1e-4, atol=1e-6, msg=name)


def test_blocks_of_one_shape_share_a_graph_and_no_changing_weight_makes_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = TrunkConfig(hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24)
    module = OmniModule(trunk, MODALITIES, optimizer=moving, w_gate=0.1)
    changing = LossReweighting(w_gate=LossSigmoidWeight())
    validation = DataLoader(PARTS[:1], batch_size=None)
    watch(PARTS, tmp_path, module, callbacks=[changing, TRACED], validation=validation)
    assert graphs() == 2  # forward and backward; forward alone

    plain = OmniModule(trunk, MODALITIES)
    plain.load_state_dict(module.state_dict(), strict=False)  # what validation counted is no weight
    session, expected = Session(module), Session(plain)
    for text in ("a", "bc", "d"):  # a document is read uncompiled, whatever its lengths
        segment = MODALITIES[0].encode(text)
        assert torch.equal(session.read([segment]), expected.read([segment]))
    assert graphs() == 2


def test_what_cannot_compile_is_told_at_setup_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="backend 'no_such' does not work on cpu") as raised:
        watch(PARTS, tmp_path, callbacks=[CompileBlocks(backend="no_such")])
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_kernels_of_inductor_agree_and_a_missing_compiler_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = TrunkConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24)
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = OmniModule(trunk, MODALITIES, optimizer=moving, w_gate=0.1)
        kept, _ = watch(PARTS[:2], tmp_path, module, callbacks=[CompileBlocks()] if compiled else [])
        gradients.append((kept.vitals[-1], [parameter.detach() for parameter in module.parameters()]))
    (plain, weights), (other, compiled_weights) = gradients
    assert_same_figures(other, plain, relative=1e-4)
    torch.testing.assert_close(compiled_weights, weights, rtol=1e-3, atol=1e-5)

    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/no/compiler"))
    with pytest.raises(MisconfigurationException, match=r"/no/compiler.*needs a C\+\+ compiler"):
        watch(PARTS, tmp_path, callbacks=[CompileBlocks()])


def _train_on_a_rank(rank: int, folder: Path) -> None:
    for strategy in (DDPStrategy, partial(FSDP2Strategy, 2)):
        figures = []
        for callbacks in ([], [TRACED]):
            kept, _ = watch(
                PARTS, folder, learning_module(), callbacks=callbacks, devices=2, strategy=strategy()
            )
            figures.append(kept.vitals)
        assert graphs() == 2
        for plain, compiled in zip(*figures, strict=True):
            assert_same_figures(compiled, plain)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()


@pytest.mark.slow
def test_blocks_are_compiled_whole_under_ddp_and_fsdp2_and_train_alike(tmp_path: Path) -> None:
    run_ranks(_train_on_a_rank, tmp_path)
