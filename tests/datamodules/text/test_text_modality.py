"""Text as the tower sees it, and as a checkpoint keeps it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.text import TextModality
from onn_lightning import OmniModule
from onn_lightning.document import encode_document
from onn_lightning.modality import BadSampleError
from onn_lightning.nn import TrunkConfig

OPTIONS = [{}, {"hashed_words": 9}, {"ngram_buckets": 64}, {"hashed_words": 9, "ngram_buckets": 64}]
mixed = st.text(alphabet="天下大势分久ab’' 1𠮷\U00012345", max_size=8)


@pytest.fixture(scope="module")
def word_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("words")
    words = folder / "words.txt"
    words.write_text("天下 5\n大势 3\n分久 2\nab 2\n", "utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("ONN_CACHE_DIR", str(folder / "cache"))
        yield words


@pytest.fixture(params=OPTIONS, ids=str)
def optional(word_file: Path, request: pytest.FixtureRequest) -> TextModality:
    return TextModality(words=str(word_file), embedding_size=8, max_words=2, **request.param)


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


def test_every_text_item_is_segmented_on_its_own(custom: TextModality) -> None:
    """Else the last word of a prompt could cover the first characters of the answer."""
    prompt, answer = ("text", "天", False), ("text", "下大势")
    _, first, second, _ = encode_document([prompt, answer], {"text": custom})
    assert torch.equal(first.features, custom.encode("天").features)
    assert torch.equal(second.features, custom.encode("下大势").features)
    assert custom.tokenizer.encode("天", full_context=True).word_ids.tolist() == [0]
    assert custom.tokenizer.encode("天下", full_context=True).word_ids.tolist() == [1, 1]


@pytest.mark.parametrize("raw", [b"bytes", None, 3, "lone \udc00"])
def test_what_is_not_text_is_a_bad_sample(custom: TextModality, raw: object) -> None:
    with pytest.raises(BadSampleError):
        custom.encode(raw)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefix=mixed, following=mixed)
def test_a_stream_continues_the_features_of_a_segment(
    optional: TextModality, prefix: str, following: str
) -> None:
    features = optional.encode(prefix + following).features
    start = len(optional.encode(prefix))
    stream = optional.stream(prefix)
    rows = [[char, *stream.push(char)] for char in features[start:, 0].tolist()]
    assert rows == features[start:].tolist()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefix=mixed, one=mixed, other=mixed)
def test_what_follows_moves_no_earlier_feature(
    optional: TextModality, prefix: str, one: str, other: str
) -> None:
    shared = len(optional.encode(prefix))
    first, second = (optional.encode(prefix + rest).features[:shared] for rest in (one, other))
    assert torch.equal(first, second)


def test_ngram_columns_follow_the_words_and_begin_anew_in_every_text(word_file: Path) -> None:
    plain, more = (TextModality(words=str(word_file), ngram_buckets=buckets) for buckets in (0, 2**20))
    features = more.encode("天下天下").features
    assert torch.equal(features[:, :3], plain.encode("天下天下").features)
    assert features.shape == (4, 5)
    assert features[1, 3] == features[3, 3] and features[1, 4] != features[3, 4]
    assert torch.equal(more.encode("下天下").features[1:2, 3], features[2:3, 3])
    assert torch.equal(more.encode("天").features[0], features[0])
    assert more.opening_segment().features.shape == (1, 5)
    encoding = more.tokenizer.encode("天下天下")  # as a prepared data set hands it over
    assert torch.equal(more.encode(encoding).features, features)


def test_every_option_trains_its_own_tables_and_comes_back_from_a_checkpoint(
    optional: TextModality, tmp_path: Path
) -> None:
    trunk = TrunkConfig(hidden_size=16, num_layers=1, num_heads=2)
    module = OmniModule(trunk, [optional])
    path = tmp_path / "module.ckpt"
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    loaded = OmniModule.load_from_checkpoint(path)
    text = "分久ab天xyz下大势"
    again = loaded.modalities["text"].encode(text)
    assert torch.equal(again.features, optional.encode(text).features)
    assert loaded.modalities["text"].assets() == optional.assets()
    names = {name for name, _ in loaded.embedders["text"].named_parameters()}
    assert ("trigram.weight" in names) == bool(optional.ngram_buckets)
    embedded = loaded.embedders["text"](again.features)
    embedded.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in loaded.embedders["text"].parameters())
    assert loaded.generate([("text", text)], max_new_tokens=3) == module.generate(
        [("text", text)], max_new_tokens=3
    )


def test_a_number_of_buckets_out_of_range_is_refused(word_file: Path) -> None:
    with pytest.raises(ValueError, match="ngram_buckets"):
        TextModality(words=str(word_file), ngram_buckets=-1)


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
