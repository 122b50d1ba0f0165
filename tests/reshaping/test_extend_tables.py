"""More words and characters: what both tokenizers read alike is predicted alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import ByteText

from datamodules import TextModality
from datamodules.text.vocabulary import CharacterVocabulary
from onn_lightning import Modality, OmniModule
from onn_lightning.checkpoint import description
from onn_lightning.generation.session import one_row_batch
from onn_lightning.nn import TrunkConfig
from onn_lightning.optim import parameter_groups
from onn_lightning.reshaping import extend_tables, reshape_checkpoint

TRUNK = TrunkConfig(16, 1, 2, intermediate_size=16)
CHARACTERS = "\n abcdehlorw人工智能，"
WORDS = "hello 9\nworld 8\n人 90\n人工 30\n人工智能 20\n"
TEXT = "hello world，人工智能 a b"

Make = Callable[..., TextModality]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Text modalities of few words and characters, given in the order of their ids."""
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "cache"))
    common = CharacterVocabulary.from_characters("").tokens

    def modality(words: str = WORDS, characters: str = CHARACTERS, **options: Any) -> TextModality:
        folder = tmp_path / f"{abs(hash((words, characters)))}"
        folder.mkdir(exist_ok=True)
        (folder / "words.txt").write_text(words)
        (folder / "characters.json").write_bytes(CharacterVocabulary([*common, *characters]).to_json())
        return TextModality(str(folder / "characters.json"), str(folder / "words.txt"), **options)

    return modality


def trained(modality: Modality, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A checkpoint after a few steps on one text."""
    torch.manual_seed(0)
    module = OmniModule(TRUNK, [modality]).to(dtype)
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=1e-2)
    segment = modality.encode(TEXT)
    for _ in range(10):
        optimizer.zero_grad()
        hidden = module(one_row_batch([segment], ["text"])).hidden[0, :-1]
        module.heads["text"](hidden, segment.targets[1:]).loss.mean().backward()
        optimizer.step()
    checkpoint = {
        "global_step": 10,
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
    }
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def logits(checkpoint: dict[str, Any], modality: Modality, text: str = TEXT) -> Tensor:
    """[n, V] of a text, by the checkpoint's network."""
    module = OmniModule(TRUNK, [modality]).double()
    module.load_state_dict(checkpoint["state_dict"])
    with torch.no_grad():
        hidden = module(one_row_batch([modality.encode(text)], ["text"])).hidden[0]
        result: Tensor = module.heads["text"].logits(hidden)
    return result


def shuffled(words: str) -> str:
    """The words with other counts, so that all have other ids."""
    return "".join(f"{line.split()[0]} {9 + number}\n" for number, line in enumerate(words.splitlines()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding_size": 8, "hashed_words": 16},
        {"use_words": False},
        {"use_previous_words": False, "ngram_buckets": 32},
    ],
)
def test_logits_of_old_symbols_stay_for_texts_that_both_read_alike(
    make: Make, options: dict[str, Any]
) -> None:
    previous = make(**options)
    characters = CHARACTERS + "xyz" if "ngram_buckets" in options else "x" + CHARACTERS[::-1] + "yz"
    now = make(WORDS + "工人 3\n", characters, **options)
    checkpoint = trained(previous)
    new = reshape_checkpoint(checkpoint, extend_tables(TRUNK, {"text": now}), [previous])
    symbols = now.table_origins(previous)["character.weight"]
    old_logits, new_logits = logits(checkpoint, previous), logits(new, now)
    known = symbols >= 0
    torch.testing.assert_close(new_logits[:, known], old_logits[:, symbols[known]], rtol=0, atol=1e-12)

    # the three new symbols take less than an old one does on average
    probability = new_logits.softmax(-1)
    assert probability[:, ~known].mean() < probability[:, known].mean()


def test_the_optimizer_goes_on_with_the_rows_that_there_were(make: Make) -> None:
    previous, now = make(), make(WORDS + "工人 300\n", "xy" + CHARACTERS)
    checkpoint = trained(previous)
    new = reshape_checkpoint(checkpoint, extend_tables(TRUNK, {"text": now}), [previous])
    groups = {g["name"]: g["params"] for g in checkpoint["optimizer_states"][0]["param_groups"]}
    for number, (table, rows) in zip(groups["embedding"], now.table_origins(previous).items(), strict=True):
        old, moved = (c["optimizer_states"][0]["state"][number] for c in (checkpoint, new))
        known = rows >= 0
        assert known.all() or table == "character.weight"
        for key, fill in (("exp_avg", 0.0), ("exp_avg_sq", float(old["exp_avg_sq"].mean()))):
            assert torch.equal(moved[key][known], old[key][rows[known]])
            torch.testing.assert_close(moved[key][~known], torch.full_like(moved[key][~known], fill))
        assert moved["step"] == old["step"]

    module = OmniModule(TRUNK, [now]).double()
    torch.optim.AdamW(parameter_groups(module)).load_state_dict(new["optimizer_states"][0])


def test_the_grown_checkpoint_describes_the_new_tokenizer(make: Make, tmp_path: Path) -> None:
    previous, now = make(), make(WORDS + "工人 3\n")
    new = reshape_checkpoint(
        trained(previous, torch.float32), extend_tables(TRUNK, {"text": now}), [previous]
    )
    torch.save(new, tmp_path / "grown.ckpt")
    module = OmniModule.load_from_checkpoint(tmp_path / "grown.ckpt")
    assert module.modalities["text"].fingerprint() == now.fingerprint()
    assert module.heads["text"].weight is module.embedders["text"].character.weight
    (entry,) = module.history
    assert entry["what"] == (
        f"tokenizer of text from {previous.tokenizer.fingerprint} to {now.tokenizer.fingerprint}"
    )
    module.generate([("text", "hello")], max_new_tokens=3)


def test_a_place_in_the_data_stands_on_the_new_tokenizer(make: Make) -> None:
    previous, now = make(), make(WORDS + "工人 3\n")
    place = {
        "identity": {"settings": {"seed": 1}, "modalities": {"text": previous.fingerprint(), "x": {"a": 1}}}
    }
    checkpoint = trained(previous) | {"loops": {"fit_loop": {"state_dict": {"combined_loader": [place]}}}}
    new = reshape_checkpoint(checkpoint, extend_tables(TRUNK, {"text": now}), [previous])
    (moved,) = new["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert moved["identity"]["modalities"] == {"text": now.fingerprint(), "x": {"a": 1}}
    assert place["identity"]["modalities"]["text"] == previous.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": WORDS.replace("hello 9\n", "")}, "lacks 1 words"),
        ({"characters": CHARACTERS.replace("a", "")}, "lacks 1 characters"),
        ({"use_words": False}, "use_words cannot go from True to False"),
        ({"embedding_size": 8}, "embedding_size cannot go from None to 8"),
        ({"hashed_words": 3}, "hashed_words cannot go from 0 to 3"),
        ({"ngram_buckets": 3}, "ngram_buckets cannot go from 0 to 3"),
    ],
)
def test_tables_that_do_not_only_grow_are_refused(make: Make, change: dict[str, Any], message: str) -> None:
    previous = make()
    with pytest.raises(ValueError, match=message):
        reshape_checkpoint(trained(previous), extend_tables(TRUNK, {"text": make(**change)}), [previous])


class Wider(ByteText):
    """Says nothing, or something wrong, of where its rows come from."""

    def __init__(self, rows: int, origins: dict[str, int] | None = None) -> None:
        super().__init__()
        self.rows, self.origins = rows, origins

    def table_origins(self, previous: Modality) -> dict[str, Tensor]:
        return {name: torch.full((self.rows,), row) for name, row in (self.origins or {}).items()}

    def build_embedder(self, hidden_size: int) -> nn.Module:
        from onn_lightning.nn import TextEmbedder

        return TextEmbedder(self.rows, 1, 1, hidden_size, use_words=False, use_previous_words=False)

    def build_head(self, hidden_size: int) -> nn.Module:
        from onn_lightning.nn import CharacterHead

        return CharacterHead(self.rows, hidden_size, torch.ones(self.rows, dtype=torch.int64))


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        (None, r"embedders\.text\.character\.weight has shape \(300, 16\) in the new network"),
        ({"nothing.weight": 0}, r"\['embedders\.text\.nothing\.weight'\] are not in both networks"),
        (
            {"character.weight": 258},
            "is to continue row 258 of embedders.text.character.weight, which has 258",
        ),
    ],
)
def test_a_modality_whose_origins_do_not_fit_is_refused(origins: Any, message: str) -> None:
    previous = ByteText()
    module = OmniModule(TRUNK, [previous])
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=message):
        reshape_checkpoint(checkpoint, extend_tables(TRUNK, {"text": Wider(300, origins)}), [previous])
    with pytest.raises(ValueError, match=r"replaces the modalities \['sound'\]"):
        reshape_checkpoint(checkpoint, extend_tables(TRUNK, {"sound": previous}), [previous])


def test_old_checkpoints_have_an_empty_history_and_saving_again_keeps_a_full_one() -> None:
    module = OmniModule(TRUNK, [ByteText()])
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    old = dict(checkpoint[description.KEY])
    del old["history"]
    assert description.history({description.KEY: old}) == []
    entry = {"step": 7, "what": "something", "trunk": dataclasses.asdict(TRUNK)}
    checkpoint[description.KEY]["history"] = [entry]
    other = OmniModule(TRUNK, [ByteText()])
    other.on_load_checkpoint(checkpoint)
    saved: dict[str, Any] = {}
    other.on_save_checkpoint(saved)
    assert saved[description.KEY]["history"] == [entry]
