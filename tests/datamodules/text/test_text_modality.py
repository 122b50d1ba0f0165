"""Text as the tower sees it, and as a checkpoint keeps it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from datamodules.text import TextModality
from onn_lightning.document import encode_document
from onn_lightning.modality import BadSampleError


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextModality:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "cache"))
    words = tmp_path / "words.txt"
    words.write_text("天下 5\n大势 3\n", "utf-8")
    return TextModality(words=str(words), embedding_size=8)


def test_a_segment_holds_the_three_columns_and_predicts_the_characters(custom: TextModality) -> None:
    segment = custom.encode("天下大势🙂\U00012345")
    encoding = custom.tokenizer.encode("天下大势🙂\U00012345")
    assert segment.features.dtype == torch.int64
    assert segment.features[:, 0].tolist() == segment.targets.tolist() == encoding.char_ids.tolist()
    assert segment.features[:, 1].tolist() == encoding.word_ids.tolist()
    assert segment.features[:, 2].tolist() == encoding.previous_word_ids.tolist()
    assert custom.to_bytes(encoding.char_ids.tolist()).decode() == "天下大势🙂\U00012345"


def test_a_document_is_opened_and_closed_and_may_be_empty(custom: TextModality) -> None:
    vocabulary = custom.tokenizer.vocabulary
    opened, text, closed = encode_document([("text", "天")], {"text": custom})
    assert opened.features.tolist() == [[vocabulary.bos_id, 0, 0]]
    assert opened.targets is None
    assert len(text) == 1
    assert closed.targets.tolist() == [vocabulary.eos_id]
    assert custom.encode("").features.shape == (0, 3)


@pytest.mark.parametrize("raw", [b"bytes", None, 3, "lone \udc00"])
def test_what_is_not_text_is_a_bad_sample(custom: TextModality, raw: object) -> None:
    with pytest.raises(BadSampleError):
        custom.encode(raw)


def test_a_stream_continues_the_features_of_a_segment(custom: TextModality) -> None:
    features = custom.encode("天下大势").features
    stream = custom.stream("天")
    assert [[char, *stream.push(char)] for char in features[1:, 0].tolist()] == features[1:].tolist()


def test_embedder_and_head_fit_the_features(custom: TextModality) -> None:
    segment = custom.encode("天下大势")
    embedder, head = custom.build_embedder(16), custom.build_head(16)
    head.tie_weights(embedder)
    hidden = embedder(segment.features)
    assert hidden.shape == (4, 16)
    output = head(hidden, segment.targets)
    assert output.loss.shape == (4,)
    assert output.num_bytes.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("option", ["use_words", "use_previous_words"])
def test_a_table_that_is_switched_off_does_not_exist(custom: TextModality, option: str) -> None:
    def num_parameters(modality: TextModality) -> int:
        return sum(parameter.numel() for parameter in modality.build_embedder(16).parameters())

    without = TextModality(**{**custom.init_args, option: False})
    assert num_parameters(without) < num_parameters(custom)


def test_a_checkpoint_carries_the_word_file(custom: TextModality) -> None:
    Path(custom.init_args["words"]).unlink()
    loaded = TextModality.from_assets(custom.init_args, custom.assets())
    for again in (loaded, pickle.loads(pickle.dumps(custom))):
        assert again.init_args == custom.init_args
        assert again.assets() == custom.assets()
        assert torch.equal(again.encode("天下大势").features, custom.encode("天下大势").features)


def test_another_tokenizer_than_the_checkpoint_s_is_refused_with_both_named(custom: TextModality) -> None:
    saved = custom.assets() | {"fingerprint": b"abc-def-1"}
    with pytest.raises(ValueError, match="abc-def-1") as raised:
        TextModality.from_assets(custom.init_args, saved)
    assert custom.tokenizer.fingerprint in str(raised.value)
