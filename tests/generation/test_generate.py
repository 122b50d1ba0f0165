"""Answers: the continuation rule, ends, seeds, bytes, and that the cache changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_documents import documents, picture, sound, texts, uncached_logits
from small_model import TRUNK, make_module

from onn_lightning import OmniModule, Segment
from onn_lightning.document import encode_document
from onn_lightning.generation import context_window, generate
from onn_lightning.generation.writer import TextWriter, writable_text
from onn_lightning.modality import BadSampleError, Modality
from onn_lightning.nn import TrunkConfig, YarnScaling

MIXED = [("audio", sound(1500, 1)), ("text", "人工"), ("image", picture(7, 5, 3)), ("text", "ab")]


class Scripted(torch.nn.Module):
    """A head that wants given ids, one after the other, whatever it is shown."""

    def __init__(self, head: Any, ids: list[int]) -> None:
        super().__init__()
        self.num_bytes, self.ids = head.num_bytes, list(ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.ids.pop(0)), len(self.num_bytes)).float()


def scripted(modalities: list[Modality], ids: list[int]) -> OmniModule:
    module = make_module(modalities)
    module.heads["text"] = Scripted(module.heads["text"], ids)
    return module


def ids_of(modalities: list[Modality], text: str) -> list[int]:
    return modalities[0].encode(text).features[:, 0].tolist()


def end_id(modalities: list[Modality]) -> int:
    return int(modalities[0].closing_segment().features[0, 0])


def first_byte(modalities: list[Modality]) -> int:
    """Id of the byte token of 0; those of the other bytes follow it."""
    return ids_of(modalities, "\U0010ffff")[-1] - 0xBF  # its last byte


@pytest.fixture(scope="module")
def fluent(modalities: list[Modality]) -> OmniModule:
    """A model that never writes bytes: what it writes can be encoded again as a string."""
    module = make_module(modalities).double().eval()
    first, head = first_byte(modalities), module.heads["text"]
    head.num_bytes = head.num_bytes.clone()
    head.num_bytes[first : first + 256] = 0
    return module


def reread(module: OmniModule, document: list, count: int) -> str:
    """Greedy text without a cache: the whole document, encoded anew for every character."""
    modality, head = writable_text(module)
    allowed = TextWriter(modality, head, "").allowed
    name, prefix = document[-1] if document else ("text", "")
    before, prefix = (document[:-1], prefix) if name == "text" else (document, "")
    written = ""
    for _ in range(count):
        whole = [*before, ("text", prefix + written)]
        logits = uncached_logits(module, encode_document(whole, module.modalities, closed=False))[-1]
        char_id = int(logits.float().masked_fill(~allowed, -torch.inf).argmax())
        if char_id == int(modality.closing_segment().features[0, 0]):
            break
        written += modality.to_bytes([char_id]).decode()
    return written


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=documents)
def test_greedy_text_is_that_of_rereading_the_whole_document_for_every_character(fluent, document):
    assert fluent.generate(document, max_new_tokens=6) == reread(fluent, document, 6)


@settings(max_examples=50, deadline=None)
@given(prefix=texts, following=texts.filter(bool))
def test_generated_characters_have_the_word_ids_of_the_whole_string(module, prefix, following):
    modality, head = writable_text(module)
    whole = modality.encode(prefix + following).features
    writer = TextWriter(modality, head, prefix)
    start = len(modality.encode(prefix))
    written = [writer.token(char_id).features for char_id in whole[start:, 0].tolist()]
    assert torch.equal(torch.cat(written), whole[start:])


class Recorder:
    """The features that a module's text embedder reads."""

    def __init__(self, module: OmniModule) -> None:
        self.rows: list[torch.Tensor] = []
        module.embedders["text"].register_forward_pre_hook(lambda _, inputs: self.rows.append(inputs[0]))


@pytest.mark.parametrize(
    ("document", "text_read"),
    [
        ([("text", "人工")], "人工智能"),  # goes on
        ([("text", "人工"), ("text", "")], "智能"),  # begins anew
        ([("text", "人工"), ("image", picture(4, 4, 0))], "智能"),  # begins anew
    ],
)
def test_only_a_text_item_at_the_end_is_continued(modalities, document, text_read):
    module = scripted(modalities, [*ids_of(modalities, "智能"), end_id(modalities)])
    recorder = Recorder(module)
    assert module.generate(document) == "智能"
    generated = torch.cat(recorder.rows)[-2:]
    assert torch.equal(generated, modalities[0].encode(text_read).features[-2:])


def test_an_empty_document_starts_a_text_from_its_beginning(modalities):
    module = scripted(modalities, [end_id(modalities)])
    recorder = Recorder(module)
    assert module.generate([]) == ""
    assert torch.equal(torch.cat(recorder.rows), modalities[0].opening_segment().features)


def test_the_document_is_read_once_and_then_one_token_a_step(modalities):
    module = scripted(modalities, ids_of(modalities, "abc"))
    lengths: list[int] = []
    module.trunk.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    assert module.generate(MIXED, max_new_tokens=3) == "abc"
    assert lengths == [sum(map(len, encode_document(MIXED, module.modalities, closed=False))), 1, 1]


@pytest.mark.parametrize(
    ("spelled", "pieces"),
    [
        (b"a\xf0\x9f\x99\x82b", ["a", "🙂", "b"]),  # complete
        (b"\xf0\x9f", ["\ufffd"]),  # cut short by the end
        (b"\xf0\x9fa", ["\ufffda"]),  # cut short by a character
        (b"\xffa", ["\ufffd", "a"]),  # no UTF-8 at all
    ],
)
def test_a_character_in_bytes_is_shown_when_it_is_complete(modalities, spelled, pieces):
    ids = [first_byte(modalities) + byte for byte in spelled]
    assert modalities[0].to_bytes(ids) == spelled
    module = scripted(modalities, [*ids, end_id(modalities)])
    assert list(generate(module, [])) == pieces


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 12))
def test_an_untrained_model_writes_valid_text_and_no_special_symbol(module, seed, count):
    text = module.generate(MIXED, max_new_tokens=count, temperature=1.0, seed=seed)
    assert len(text) <= count
    text.encode("utf-8")


def test_padding_and_other_special_symbols_are_never_allowed(module):
    modality, head = writable_text(module)
    allowed = TextWriter(modality, head, "").allowed
    silent = {char_id for char_id in range(len(allowed)) if not modality.to_bytes([char_id])}
    end = int(modality.closing_segment().features[0, 0])
    assert int(modality.opening_segment().features[0, 0]) in silent
    assert set((~allowed).nonzero().flatten().tolist()) == silent - {end}


def test_the_model_ends_its_text(modalities):
    module = scripted(modalities, [*ids_of(modalities, "ab"), end_id(modalities), *ids_of(modalities, "cc")])
    assert module.generate([("text", "a")]) == "ab"


@pytest.mark.parametrize("stop", ["d人", ["zz", "d人"]])
def test_a_stop_string_ends_the_text_and_is_not_shown(modalities, stop):
    module = scripted(modalities, ids_of(modalities, "abd人工c"))
    assert list(generate(module, [], stop=stop)) == ["a", "b"]


def test_text_held_back_for_a_stop_string_that_never_comes_is_shown_at_the_end(modalities):
    module = scripted(modalities, ids_of(modalities, "abd"))
    assert module.generate([], max_new_tokens=3, stop="d人") == "abd"


def test_generation_ends_after_max_new_tokens(modalities):
    assert scripted(modalities, ids_of(modalities, "abcd")).generate([], max_new_tokens=2) == "ab"


def test_a_seed_repeats_a_text_and_leaves_the_global_randomness_alone(module):
    state = torch.get_rng_state()
    settings = {"max_new_tokens": 30, "temperature": 1.0}
    one, again, other = (module.generate([("text", "a")], seed=seed, **settings) for seed in (1, 1, 2))
    unseeded = {module.generate([], **settings) for _ in range(3)}
    assert one == again != other
    assert len(unseeded) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_top_k_of_one_is_greedy_at_any_temperature(module):
    greedy = module.generate(MIXED, max_new_tokens=10)
    assert module.generate(MIXED, max_new_tokens=10, temperature=3.0, top_k=1) == greedy


def test_two_streams_of_one_model_do_not_disturb_each_other(module):
    alone = [list(generate(module, document, 8)) for document in (MIXED, [("text", "c")])]
    first, second = generate(module, MIXED, 8), generate(module, [("text", "c")], 8)
    together: list[list[str]] = [[], []]
    for _ in range(8):
        for stream, pieces in zip((first, second), together, strict=True):
            pieces += [piece for piece in [next(stream, None)] if piece is not None]
    assert together == alone


def test_streaming_leaks_no_mode_into_its_consumer(modalities):
    module = make_module(modalities).train()
    stream = generate(module, [("text", "ab")], 20, temperature=1.0, seed=0)
    next(stream)
    assert module.training
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    stream.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 2.0}, "top_p is 2.0"),
        ({"stop": ["a", ""]}, "empty"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_piece(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(module, [], **arguments)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("image", "missing.png"), "missing.png"),
        (("audio", "missing.wav"), "missing.wav"),
        (("text", "a\ud800"), "surrogate"),
        (("video", "a.mp4"), "modality 'video'"),
    ],
)
def test_a_damaged_item_is_named_before_the_first_piece(module, item, message):
    with pytest.raises(BadSampleError, match=message):
        generate(module, [("text", "a"), item])


def test_a_damaged_file_is_named(module, tmp_path: Path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(BadSampleError, match=r"broken\.png"):
        generate(module, [("image", path)])


def test_a_document_beyond_the_context_window_is_refused_with_the_numbers(modalities):
    yarn = YarnScaling(factor=2.0, original_max_position=8)
    module = make_module(modalities, TrunkConfig(hidden_size=16, num_layers=1, num_heads=2, yarn=yarn))
    assert len(list(generate(module, [("text", "aaa")], max_new_tokens=12, temperature=1.0))) <= 12
    with pytest.raises(ValueError, match=r"has 4 tokens; with max_new_tokens=13 .* window of 16"):
        generate(module, [("text", "aaa")], max_new_tokens=13)


def test_the_native_window_holds_where_nothing_extends_it():
    assert context_window(TRUNK) == 32_768
    assert context_window(TrunkConfig(yarn=YarnScaling(factor=8.0))) == 262_144


def test_a_model_without_text_says_so(modalities):
    module = make_module(modalities[1:])
    with pytest.raises(ValueError, match="modality 'text'"):
        generate(module, [])


class ReadOnlyText(Modality):
    name = "text"

    def encode(self, raw: Any) -> Segment:
        return Segment(self.name, torch.zeros(1, 1))

    def build_embedder(self, hidden_size: int) -> torch.nn.Module:
        return torch.nn.Linear(1, hidden_size)

    def build_head(self, hidden_size: int) -> None:
        return None


def test_a_text_modality_that_cannot_be_written_names_what_it_lacks():
    with pytest.raises(ValueError, match=r"ReadOnlyText cannot be written.*`stream` and `to_bytes`"):
        generate(make_module([ReadOnlyText()]), [])
