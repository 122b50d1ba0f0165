"""Text in the tower: three ids a token (character, causal word, word before), the character predicted.

Notable:
- Features are ids that depend on the past alone, so that the model is trained on what it will have
  when it generates; targets are the characters themselves.
- A document of text begins with `<bos>` and ends with `<eos>`; both come from here, never from data.
- A checkpoint carries the vocabulary and word files that are not built in. Of the built-in ones it
  carries the fingerprint, and refuses to load where they have changed: other ids would mean other
  characters and words than those that were learned.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.text.tokenizer import DualTokenizer, Encoding, EncodingStream
from onn_lightning.batch import Segment
from onn_lightning.modality import BadSampleError, Modality, Preview

_FINGERPRINT = "fingerprint"


class TextModality(Modality):
    """Text, character by character.

    Args:
        vocabulary: path of a `tokenizer.json` of characters; None: the built-in inventory.
        words: path of a word list (`word count [tag]` lines); None: jieba's dictionary.
        user_words: path of words to add or change, counts optional.
        max_words: keep this many words, user words first, then the most frequent; None: all.
        use_words: embed the word that a character stands in, as far as the past tells.
        use_previous_words: embed the word before it, from a table of its own.
        embedding_size: width of the tables, projected to the hidden size; None: the hidden size.
    Raises:
        FileNotFoundError, ValueError: as `DualTokenizer`.
    """

    name = "text"

    def __init__(
        self,
        vocabulary: str | None = None,
        words: str | None = None,
        user_words: str | None = None,
        max_words: int | None = None,
        use_words: bool = True,
        use_previous_words: bool = True,
        embedding_size: int | None = None,
    ) -> None:
        self.tokenizer = DualTokenizer(vocabulary, words, user_words, max_words)

    def encode(self, raw: Any) -> Segment:
        """Encode a string, or take the encoding that a prepared data set holds.

        Returns:
            Segment with features [n, 3] int64 (char, word, previous word) and targets [n] char ids.
        Raises:
            BadSampleError: if `raw` is neither, or a string that holds a lone surrogate.
        """
        if not isinstance(raw, str | Encoding):
            raise BadSampleError(
                f"text must be a str, got {type(raw).__name__}: decode bytes with .decode('utf-8') first"
            )
        encoding = self.tokenizer.encode(raw) if isinstance(raw, str) else raw
        columns = (encoding.char_ids, encoding.word_ids, encoding.previous_word_ids)
        return self._segment(torch.from_numpy(np.stack(columns, axis=1)))

    def opening_segment(self) -> Segment:
        """`<bos>`."""
        return self._bos

    def closing_segment(self) -> Segment:
        """`<eos>`."""
        return self._eos

    def build_embedder(self, hidden_size: int) -> nn.Module:
        """Features [n, 3] -> [n, hidden_size], the sum of the tables in use."""
        from onn_lightning.nn import TextEmbedder

        return TextEmbedder(
            self.tokenizer.vocab_size,
            self.tokenizer.num_words,
            self.tokenizer.word_vocab_size,
            hidden_size,
            embedding_size=self.init_args["embedding_size"],
            use_words=self.init_args["use_words"],
            use_previous_words=self.init_args["use_previous_words"],
        )

    def build_head(self, hidden_size: int) -> nn.Module:
        """(hidden [m, hidden_size], char ids [m]) -> cross-entropy; tied to the embedder's characters."""
        from onn_lightning.nn import CharacterHead

        return CharacterHead(
            self.tokenizer.vocab_size,
            hidden_size,
            num_bytes=torch.from_numpy(self.tokenizer.vocabulary.num_bytes),
            embedding_size=self.init_args["embedding_size"],
        )

    def preview(self, segment: Segment) -> Preview:
        """The characters, special tokens as ⟨eos⟩, and the words of the best segmentation of all of them."""
        char_ids = segment.features[:, 0].numpy()
        vocabulary = self.tokenizer.vocabulary
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # characters may be spelled in bytes
        text = tuple(
            decoder.decode(vocabulary.to_bytes([char_id]))
            if vocabulary.num_bytes[char_id]
            else f"⟨{vocabulary.tokens[char_id][1:-1]}⟩"
            for char_id in char_ids.tolist()
        )
        starts = self.tokenizer.segmenter.table(char_ids).full_context().starts
        return Preview(text, tuple((starts == np.arange(len(starts))).tolist()))

    def fingerprint(self) -> dict[str, Any]:
        """That of the tokenizer."""
        return {"tokenizer": self.tokenizer.fingerprint}

    def stream(self, prefix: str = "") -> EncodingStream:
        """Word ids of what is written after `prefix`, one char id at a time."""
        return self.tokenizer.stream(prefix)

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 bytes that char ids stand for; none for special tokens."""
        return self.tokenizer.vocabulary.to_bytes(ids)

    def assets(self) -> dict[str, bytes]:
        """The files that are not built in, and the fingerprint of the whole."""
        return {**self.tokenizer.files, _FINGERPRINT: self.tokenizer.fingerprint.encode()}

    @classmethod
    def from_assets(cls, init_args: dict[str, Any], assets: dict[str, bytes]) -> TextModality:
        """Make an instance from a checkpoint; the paths in `init_args` need not exist any more.

        Raises:
            ValueError: if characters, words or rules are not those of the checkpoint.
        """
        files = {name: content for name, content in assets.items() if name != _FINGERPRINT}
        tokenizer = DualTokenizer.from_files(files, init_args.get("max_words"))
        saved = assets[_FINGERPRINT].decode()
        if tokenizer.fingerprint != saved:
            raise ValueError(
                f"the checkpoint's text was encoded by tokenizer {saved}, this installation's is "
                f"{tokenizer.fingerprint} (characters-words-rules): the same ids would mean other text. "
                "Install the versions of onn_lightning and jieba that the checkpoint was made with"
            )
        modality = cast(TextModality, cls.__new__(cls, **init_args))  # keeps the paths, reads no file
        modality.tokenizer = tokenizer
        return modality

    @cached_property
    def _bos(self) -> Segment:
        return self._special(self.tokenizer.vocabulary.bos_id)

    @cached_property
    def _eos(self) -> Segment:
        return self._special(self.tokenizer.vocabulary.eos_id)

    def _special(self, char_id: int) -> Segment:
        return self._segment(torch.tensor([[char_id, 0, 0]]))

    def _segment(self, features: Tensor) -> Segment:
        return Segment(self.name, features, targets=features[:, 0])
