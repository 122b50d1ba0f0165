"""`DocumentScorer`: the figures of training, a document at a time, however documents are packed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from toy import ByteText, Patches, pack

from onn_lightning import OmniModule
from onn_lightning.modality import BadSampleError
from onn_lightning.nn import TrunkConfig
from onn_lightning.nn.loss import predictive_integrity
from onn_lightning.scoring import DocumentScorer, Score

TRUNK = TrunkConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24)
PICTURE = [0.1, -0.4, 0.3, 1.0, 0.2, -0.8]
DOCUMENTS: list[Any] = [
    [("text", "hello")],
    [("patch", PICTURE), ("text", "ab")],
    [("text", "人工智能"), ("patch", PICTURE), ("text", "more", False), ("text", "and more")],
    [("text", "x")],
]


@pytest.fixture(scope="module")
def module() -> OmniModule:
    torch.manual_seed(0)
    made = OmniModule(TRUNK, [ByteText(), Patches()], loss_weights={"patch": 0.5})
    torch.nn.init.normal_(made.heads["patch"].projection.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    return made.eval()


def scored(module: OmniModule, documents: list[Any], **settings: Any) -> list[Score]:
    scorer = DocumentScorer(module, **settings)
    return scorer.score([scorer.encode(document) for document in documents])


def reference(module: OmniModule, document: Any) -> dict[str, float]:
    """A training step over a batch of this one document: loss, tau and, after backward, surprise and PI."""
    batch = pack([[document]], list(module.modalities.values()), length=64)
    output = module(batch)
    outputs = module.predict_targets(batch, output.hidden)
    loss = module.main_loss(outputs)
    loss.backward()
    surprise = output.auxiliary.surprise.grad
    assert surprise is not None
    text = outputs["text"]
    assert text.num_bytes is not None and text.entropy is not None
    tau = text.entropy.mean()
    module.zero_grad()
    return {
        "main_loss": loss.item(),
        "tau": tau.item(),
        "surprise": surprise.mean().item(),
        "pi": predictive_integrity(loss, tau, surprise.mean(), 1.0, 1.0).item(),
        "bits_per_byte": text.loss.sum().item() / math.log(2) / int(text.num_bytes.sum()),
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_scores_are_those_of_a_training_step_over_the_one_document(module: OmniModule, document: Any) -> None:
    (score,) = scored(module, [document], row_length=64, with_surprise=True)
    expected = reference(module, document)
    assert {name: getattr(score, name) for name in expected} == pytest.approx(expected, rel=1e-5)
    (quick,) = scored(module, [document], row_length=64)
    assert quick.surprise == 0
    assert quick.pi == pytest.approx(math.exp(-expected["main_loss"] / expected["tau"]), rel=1e-5)
    assert quick.bits_per_byte == pytest.approx(expected["bits_per_byte"], rel=1e-5)


def test_a_score_does_not_depend_on_what_else_is_scored(module: OmniModule) -> None:
    alone = [scored(module, [document], row_length=64)[0] for document in DOCUMENTS]
    together = scored(module, DOCUMENTS * 3, row_length=64, rows_per_batch=2)
    for score, expected in zip(together, alone * 3, strict=True):
        assert vars(score) == pytest.approx(vars(expected), rel=1e-5)


def test_constants_of_integrity_can_be_read_from_the_system_and_a_score_still_stands_alone() -> None:
    torch.manual_seed(0)
    made = OmniModule(TRUNK, [ByteText(), Patches()], pi_alpha="activation_rate", pi_gamma="gate_threshold")
    made.eval()
    together = scored(made, DOCUMENTS, row_length=64, with_surprise=True)
    for document, score in zip(DOCUMENTS, together, strict=True):
        with torch.no_grad():
            activation = made(
                pack([[document]], list(made.modalities.values()), length=64)
            ).auxiliary.activation
        gamma = math.log1p(math.exp(-1.0))  # all thresholds stand at -1
        expected = math.exp(
            -float(activation.mean()) * (score.main_loss / score.tau + gamma * score.surprise)
        )
        assert score.pi == pytest.approx(expected, rel=1e-5)
    quick = scored(made, DOCUMENTS, row_length=64)
    assert [vars(score) for score in quick] == [
        pytest.approx(vars(scored(made, [document], row_length=64)[0]), rel=1e-5) for document in DOCUMENTS
    ]


def test_surprise_of_a_document_in_several_batches_is_that_of_all_its_tokens(module: OmniModule) -> None:
    document = [("text", "one row is not enough for this")]
    (wide,) = scored(module, [document], row_length=8, rows_per_batch=16, with_surprise=True)
    (narrow,) = scored(module, [document], row_length=8, rows_per_batch=1, with_surprise=True)
    assert vars(narrow) == pytest.approx(vars(wide), rel=1e-5)
    assert wide.surprise > 0


def test_only_the_beginning_of_a_long_document_is_read(module: OmniModule) -> None:
    documents = [[("text", "the same beginning" + end)] for end in ("", " and another end" * 100)]
    one, other = scored(module, documents, row_length=8, max_rows=2)
    assert one == other
    assert scored(module, documents[:1], row_length=8)[0] != one
    assert len(DocumentScorer(module, row_length=8, max_rows=2).encode(documents[1])) == 2 * 8


def test_a_document_without_targets_has_no_score(module: OmniModule) -> None:
    silent, text = scored(module, [[("text", "context", False)], [("text", "said")]], row_length=64)
    assert all(math.isnan(value) for value in vars(silent).values())
    assert not math.isnan(text.pi)


def test_what_the_module_cannot_read_is_named(module: OmniModule) -> None:
    with pytest.raises(BadSampleError, match="modality 'smell'"):
        DocumentScorer(module).encode([("smell", 1)])


def test_scoring_leaves_the_module_as_it_was(module: OmniModule) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scored(module, DOCUMENTS, row_length=64, with_surprise=True)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def test_impossible_settings_are_refused(module: OmniModule) -> None:
    with pytest.raises(ValueError, match="row_length=1 must be at least 2"):
        DocumentScorer(module, row_length=1)
