"""The inventory of characters: one id a character, bytes for whatever is not in it.

Notable:
- It IS a Hugging Face `tokenizer.json` (BPE without merges, `byte_fallback`, decoder ByteFallback +
  Fuse): `tokenizers.Tokenizer.from_file` and `PreTrainedTokenizerFast(tokenizer_file=...)` load the
  same file and give the same ids.
- No special token is an "added token", so no text can spell one: "<eos>" in a document is five
  characters, here and there. Special ids come from the framework, never from data.
- Ids: special tokens, then the 256 byte tokens `<0x00>`.., then characters in code-point order.
- Encoding is one compiled look-up over code points; a character outside the inventory becomes its
  UTF-8 bytes. Nothing is normalised, so every string that encodes to UTF-8 comes back as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

BUILTIN_FILE = "tokenizer.json"
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", *(f"<reserved_{index}>" for index in range(13)))
BYTE_TOKENS = tuple(f"<0x{value:02X}>" for value in range(256))
_NUM_CODE_POINTS = 0x110000

Ids = npt.NDArray[np.int64]


class CharacterVocabulary:
    """Characters, bytes and special tokens with their ids.

    Args:
        tokens: every token in the order of its id: special tokens (`<...>`, among them `<pad>`,
            `<bos>`, `<eos>`), all 256 byte tokens, single characters.
    Raises:
        ValueError: if a needed token is missing, one is there twice, or one is neither a special
            token, a byte token nor one character.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        ids = {token: index for index, token in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            raise ValueError("vocabulary holds a token twice; every id needs a token of its own")
        missing = [token for token in (*SPECIAL_TOKENS[:3], *BYTE_TOKENS) if token not in ids]
        if missing:
            raise ValueError(
                f"vocabulary lacks {missing[:5]} ({len(missing)} in all): <pad>, <bos>, <eos> and the 256 "
                "byte tokens <0x00>..<0xFF> are needed so that every string can be encoded"
            )
        self.pad_id, self.bos_id, self.eos_id = (ids[token] for token in SPECIAL_TOKENS[:3])
        self.byte_ids = np.array([ids[token] for token in BYTE_TOKENS], dtype=np.int64)
        self.is_byte = np.zeros(len(self.tokens), dtype=bool)
        self.is_byte[self.byte_ids] = True
        self._pieces = [self._piece(token) for token in self.tokens]
        self.num_bytes = np.array([len(piece) for piece in self._pieces], dtype=np.int64)
        """[vocab_size] UTF-8 bytes that each id stands for; 0 for special tokens."""
        self._id_of_code_point = np.full(_NUM_CODE_POINTS, -1, dtype=np.int32)
        for index, token in enumerate(self.tokens):
            if len(token) == 1:
                self._id_of_code_point[ord(token)] = index

    @staticmethod
    def _piece(token: str) -> bytes:
        """UTF-8 bytes of a token, none for a special token."""
        if token in _BYTE_VALUES:
            return bytes([_BYTE_VALUES[token]])
        if len(token) == 1 and not "\ud800" <= token <= "\udfff":
            return token.encode()
        if len(token) > 2 and token[0] == "<" and token[-1] == ">":
            return b""
        raise ValueError(
            f"vocabulary token {token!r} is neither one character, a byte token nor a special token in angle "
            "brackets; this tokenizer gives every character an id of its own and knows no longer tokens"
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, character: str) -> bool:
        return bool(self._id_of_code_point[ord(character)] >= 0)

    @property
    def characters(self) -> list[str]:
        """The single characters of the inventory, in the order of their ids."""
        return [token for token in self.tokens if len(token) == 1]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of tokens and ids, whatever the layout of the file they came from."""
        return hashlib.sha256("\n".join(map(repr, self.tokens)).encode()).hexdigest()[:16]

    def encode(self, text: str) -> Ids:
        """Ids of a text: one a character, or one a UTF-8 byte of a character outside the inventory.

        Raises:
            UnicodeEncodeError: if the text holds a lone surrogate; its `start` is the position.
        """
        from datamodules.text.spelling import spell  # loads numba

        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = np.empty(len(code_points), dtype=np.int64)
        num_tokens = spell(code_points, self._id_of_code_point, self.byte_ids, ids)
        if num_tokens > len(ids):
            ids = np.empty(num_tokens, dtype=np.int64)
            spell(code_points, self._id_of_code_point, self.byte_ids, ids)
        return ids

    def decode(self, ids: Iterable[int] | npt.NDArray[Any]) -> str:
        """Text of ids; special tokens vanish, bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is not of this vocabulary; the message names it and its position.
        """
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def to_bytes(self, ids: Iterable[int] | npt.NDArray[Any]) -> bytes:
        """UTF-8 bytes of ids, for streams that show text before a character is complete.

        Raises:
            ValueError: as `decode`.
        """
        array = np.asarray(ids if hasattr(ids, "__len__") else list(ids))
        if array.size == 0:
            return b""
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"ids must be one row of integers, got shape {array.shape} of {array.dtype}")
        outside = np.flatnonzero((array < 0) | (array >= len(self)))
        if len(outside):
            raise ValueError(
                f"id {array[outside[0]]} at position {outside[0]} is not in 0..{len(self) - 1}: the ids were "
                "made with another vocabulary, or are not character ids"
            )
        pieces = self._pieces
        return b"".join([pieces[index] for index in array.tolist()])

    def to_json(self) -> bytes:
        """The vocabulary as a Hugging Face `tokenizer.json`."""
        document: dict[str, Any] = {
            **_EMPTY_STAGES,
            "version": "1.0",
            "added_tokens": [],
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {token: index for index, token in enumerate(self.tokens)},
                "merges": [],
            },
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes, source: str = "vocabulary") -> CharacterVocabulary:
        """Read a Hugging Face `tokenizer.json` of characters.

        Args:
            content: the file's bytes.
            source: what to call it in errors.
        Raises:
            ValueError: if it is not JSON, not a BPE model with byte fallback and without merges, or
                changes the text before the model sees it.
        """
        try:
            document = json.loads(content)
            model = document["model"]
            vocabulary = dict(model["vocab"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{source} is not a Hugging Face tokenizer.json of a BPE model ({error!r}): make one with "
                "`CharacterVocabulary.from_characters(...).to_json()`"
            ) from error
        if model.get("type") != "BPE" or not model.get("byte_fallback") or model.get("merges"):
            raise ValueError(
                f"{source} must be a BPE model with byte_fallback and without merges, one token a character; "
                "make one with `CharacterVocabulary.from_characters(...).to_json()`"
            )
        changing = [stage for stage in ("normalizer", "pre_tokenizer") if document.get(stage)]
        if changing or document.get("added_tokens"):
            raise ValueError(
                f"{source} has {' and '.join(changing) or 'added_tokens'}: remove it, or its ids differ from "
                "this tokenizer's, which changes no text and lets no text spell a special token"
            )
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError(f"{source}: ids must run from 0 to {len(tokens) - 1} without gaps")
        try:
            return cls(tokens)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    @classmethod
    def from_characters(cls, characters: Iterable[str]) -> CharacterVocabulary:
        """Make a vocabulary of these characters, in code-point order, with the usual specials and bytes."""
        return cls([*SPECIAL_TOKENS, *BYTE_TOKENS, *sorted(set(characters))])

    @classmethod
    def builtin(cls) -> CharacterVocabulary:
        """The inventory that comes with the package (see `datamodules.text.inventory`)."""
        return _builtin()


_BYTE_VALUES = {token: value for value, token in enumerate(BYTE_TOKENS)}
_EMPTY_STAGES = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))


@cache
def _builtin() -> CharacterVocabulary:
    content = files("datamodules.text").joinpath(BUILTIN_FILE).read_bytes()
    return CharacterVocabulary.from_json(content, source=f"built-in {BUILTIN_FILE}")
