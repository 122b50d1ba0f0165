"""The model-based filter with a real checkpoint: noise out, the rest untouched, nothing executed."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_texts import document
from toy import ByteText, pack

from datamodules.prepare.document import Item
from datamodules.prepare.document import pack as pack_items
from datamodules.prepare.filters.model import ModelFilter
from datamodules.prepare.records import StepRecord
from onn_lightning import OmniModule
from onn_lightning.checkpoint.description import CheckpointError
from onn_lightning.nn import TrunkConfig

TRUNK = TrunkConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24)
WORDS = ("bread ", "salt ", "and ", "water ", "the ", "oven ")
draw = random.Random(0)
PROSE = ["".join(draw.choices(WORDS, k=12)) for _ in range(8)]
NOISE = ["".join(draw.choices("qxzjkv%^&0123456789", k=60)) for _ in range(3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a model that knows words of `WORDS` from noise."""
    torch.manual_seed(0)
    modality = ByteText()
    module = OmniModule(TRUNK, [modality])
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    batch = pack([[[("text", text)]] for text in PROSE], [modality], length=96)
    for _ in range(40):
        optimizer.zero_grad()
        module.main_loss(module.predict_targets(batch, module(batch).hidden)).backward()
        optimizer.step()
    saved: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(saved)
    path = tmp_path_factory.mktemp("model") / "last.ckpt"
    torch.save(saved, path)
    return str(path)


def model_filter(checkpoint: str, **settings: Any) -> ModelFilter:
    return ModelFilter(checkpoint, row_length=128, rows_per_batch=2, trusted_packages=["toy"], **settings)


def test_noise_is_dropped_and_prose_kept_in_order(checkpoint: str) -> None:
    texts = [PROSE[0], NOISE[0], *PROSE[1:5], NOISE[1], NOISE[2], PROSE[5]]
    documents = [document(text, f"corpus: {number}") for number, text in enumerate(texts)]
    record = StepRecord("model")
    kept = list(model_filter(checkpoint, max_bits_per_byte=5).process(documents, record, task=0))
    assert [each.text for each in kept] == [text for text in texts if text in PROSE]
    assert dict(record.dropped) == {"bits per byte too high": 3} and record.kept == 6
    example = record.examples["bits per byte too high"][0]
    assert example["id"] == "corpus: 1"
    assert "bits per byte, PI 0." in example["text"] and example["text"].endswith(NOISE[0])


@pytest.mark.parametrize(
    ("bounds", "reasons"),
    [
        ({"max_bits_per_byte": 5}, (None, "bits per byte too high")),
        ({"min_bits_per_byte": 5}, ("bits per byte too low", None)),
        ({"min_pi": 0.2}, (None, "PI too low")),
        ({"max_pi": 0.2}, ("PI too high", None)),
        ({"min_pi": 0.2, "with_surprise": True}, (None, "PI too low")),
        ({"min_bits_per_byte": 0, "max_bits_per_byte": 99, "min_pi": 0, "max_pi": 1}, (None, None)),
    ],
)
def test_every_bound(checkpoint: str, bounds: dict[str, Any], reasons: tuple[str | None, ...]) -> None:
    judged = model_filter(checkpoint, **bounds)
    assert (judged.judge(document(PROSE[0])), judged.judge(document(NOISE[0]))) == reasons


def test_one_by_one_and_in_batches_the_verdicts_are_the_same(checkpoint: str) -> None:
    documents = [document(text) for text in [*PROSE, *NOISE] * 5]
    judged = model_filter(checkpoint, max_bits_per_byte=5)
    alone = [each for each in documents if judged.judge(each) is None]
    assert list(judged.process(documents, StepRecord("model"), task=0)) == alone


def test_what_the_model_cannot_read_or_has_no_opinion_of_is_kept(checkpoint: str) -> None:
    judged = model_filter(checkpoint, max_bits_per_byte=0)
    picture = pack_items([Item("image", media=b"png"), Item("text", text="a caption")], "web: 1", "web")
    context = pack_items([Item("text", text="only read", supervised=False)], "web: 2", "web")
    assert list(judged.process([picture, context], StepRecord("model"), task=0)) == [picture, context]
    assert judged.judge(picture) is None and judged.judge(context) is None


def test_the_checkpoint_is_loaded_once_a_process_and_travels_as_a_path(checkpoint: str) -> None:
    one = model_filter(checkpoint, max_bits_per_byte=5)
    other = pickle.loads(pickle.dumps(one))
    assert other.scorer is one.scorer
    assert len(pickle.dumps(one)) < 10_000


class _Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("executed").touch, ())


def test_a_checkpoint_with_code_in_it_is_refused_unexecuted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "onn_lightning": _Exploit()}, tmp_path / "bad.ckpt")
    judged = model_filter(str(tmp_path / "bad.ckpt"), max_pi=0.5)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        judged.judge(document(PROSE[0]))
    assert not Path("executed").exists()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.ckpt"):
        model_filter(str(tmp_path / "none.ckpt"), max_pi=0.5).judge(document(PROSE[0]))


def test_a_filter_without_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of"):
        ModelFilter("last.ckpt")
