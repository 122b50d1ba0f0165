"""Text in the tower: ids a token (character, causal word, word before), the character predicted.

Notable:
- Features are ids that depend on the past alone, so that the model is trained on what it will have
  when it generates; targets are the characters themselves.
- Hashes of the last 2 and 3 characters are features too where tables for them are asked for. They follow
  from the characters: nothing on disk holds them.
- A document of text begins with `<bos>` and ends with `<eos>`; both come from here, never from data.
- A checkpoint carries the vocabulary and word files that are not built in. Of the built-in ones it
  carries the fingerprint, and refuses to load where they have changed: other ids would mean other
  characters and words than those that were learned.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.text.tokenizer import DualTokenizer, Encoding, EncodingStream, Ids
from onn_lightning.batch import Segment
from onn_lightning.modality import BadSampleError, Modality, Preview

MAX_NGRAM_BUCKETS = 2**24
TABLES = ("character", "word", "previous_word", "bigram", "trigram")
"""Names of the embedder's tables, in the order of the columns of features."""
_FINGERPRINT = "fingerprint"
_NOTHING_BEFORE = np.array([-1, -1])


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
        hashed_words: number of further word ids that rare and unknown words share by their hash; see
            `DualTokenizer`.
        ngram_buckets: rows of two more tables, of the last 2 and of the last 3 characters, which share them
            by their hash; 0: no such tables.
    Raises:
        FileNotFoundError, ValueError: as `DualTokenizer`; ValueError also for `ngram_buckets` out of range.
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
        hashed_words: int = 0,
        ngram_buckets: int = 0,
    ) -> None:
        if not 0 <= ngram_buckets <= MAX_NGRAM_BUCKETS:
            raise ValueError(f"ngram_buckets must be in 0..{MAX_NGRAM_BUCKETS}, got {ngram_buckets}")
        self.tokenizer = DualTokenizer(vocabulary, words, user_words, max_words, hashed_words)

    def encode(self, raw: Any) -> Segment:
        """Encode a string, or take the encoding that a prepared data set holds.

        Returns:
            Segment with features [n, 3] int64 (char, word, previous word), [n, 5] with `ngram_buckets` (then
            also last 2, last 3 characters), and targets [n] char ids.
        Raises:
            BadSampleError: if `raw` is neither, or a string that holds a lone surrogate.
        """
        if not isinstance(raw, str | Encoding):
            raise BadSampleError(
                f"text must be a str, got {type(raw).__name__}: decode bytes with .decode('utf-8') first"
            )
        encoding = self.tokenizer.encode(raw) if isinstance(raw, str) else raw
        columns = [encoding.char_ids, encoding.word_ids, encoding.previous_word_ids]
        if self.ngram_buckets:
            columns += self._ngrams(encoding.char_ids)
        return self._segment(torch.from_numpy(np.stack(columns, axis=1)))

    @property
    def ngram_buckets(self) -> int:
        """Rows of the tables of the last 2 and 3 characters."""
        return int(self.init_args["ngram_buckets"])

    def opening_segment(self) -> Segment:
        """`<bos>`."""
        return self._bos

    def closing_segment(self) -> Segment:
        """`<eos>`."""
        return self._eos

    def build_embedder(self, hidden_size: int) -> nn.Module:
        """Features [n, 3 or 5] -> [n, hidden_size], the sum of the tables in use."""
        from onn_lightning.nn import TextEmbedder

        return TextEmbedder(
            self.tokenizer.vocab_size,
            self.tokenizer.num_words,
            self.tokenizer.word_vocab_size,
            hidden_size,
            embedding_size=self.init_args["embedding_size"],
            use_words=self.init_args["use_words"],
            use_previous_words=self.init_args["use_previous_words"],
            ngram_buckets=self.ngram_buckets,
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

    def table_origins(self, previous: Modality) -> Mapping[str, Tensor]:
        """Rows of the character, word and n-gram tables, see `datamodules.text.table_rows`.

        Raises:
            ValueError: if something in the previous tables has no row any more, or other tables are in use.
        """
        from datamodules.text.table_rows import feature_origins

        if not isinstance(previous, TextModality):
            raise ValueError(f"the tables of a {type(previous).__name__} cannot go on as those of text")
        for name in ("use_words", "use_previous_words", "embedding_size"):
            now, before = self.init_args[name], previous.init_args[name]
            if now != before:
                raise ValueError(f"{name} cannot go from {before} to {now}: tables only get more rows")
        origins = feature_origins(
            previous.tokenizer, self.tokenizer, previous.ngram_buckets, self.ngram_buckets
        )
        if not self.init_args["use_words"]:
            del origins["word"]
        if not self.init_args["use_previous_words"]:
            del origins["previous_word"]
        return {f"{table}.weight": torch.from_numpy(rows) for table, rows in origins.items()}

    def with_tables(self, **changed: Any) -> TextModality:
        """The same modality with other files of characters and words; the files so far need not be there.

        Args:
            changed: any of `vocabulary`, `words`, `user_words` (paths) and `max_words`.
        Raises:
            FileNotFoundError, ValueError: as `DualTokenizer`.
        """
        arguments = {**self.init_args, **changed}
        tokenizer = self.tokenizer.with_files(
            {name: path for name, path in changed.items() if name != "max_words"}, arguments["max_words"]
        )
        modality = cast(TextModality, type(self).__new__(type(self), **arguments))
        modality.tokenizer = tokenizer
        return modality

    def read_alike(self, previous: TextModality, text: str) -> tuple[Segment, Segment]:
        """A text as the previous modality and as this one reads it, up to the first token that differs.

        Tokens are the same where every table gives this one a row that continues the previous one's.
        """
        before, now = previous.encode(text), self.encode(text)
        length = min(len(before), len(now))
        alike = torch.ones(length, dtype=torch.bool)
        for table, rows in self.table_origins(previous).items():
            column = TABLES.index(table.removesuffix(".weight"))
            alike &= rows[now.features[:length, column]] == before.features[:length, column]
        length = int(alike.cumprod(0).sum())
        return before[:length], now[:length]

    def stream(self, prefix: str = "") -> FeatureStream:
        """Features of what is written after `prefix`, one char id at a time."""
        before = self.tokenizer.encode(prefix).char_ids[-2:] if self.ngram_buckets else np.empty(0, np.int64)
        return FeatureStream(self.tokenizer.stream(prefix), before, self.ngram_buckets)

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
        tokenizer = DualTokenizer.from_files(
            files, init_args.get("max_words"), init_args.get("hashed_words", 0)
        )
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
        ngrams = self._ngrams(np.array([char_id])) if self.ngram_buckets else []
        return self._segment(torch.tensor([[char_id, 0, 0, *(int(column[0]) for column in ngrams)]]))

    def _ngrams(self, char_ids: Ids) -> list[Ids]:
        from datamodules.text.hashing import ngram_buckets

        return list(ngram_buckets(char_ids, _NOTHING_BEFORE, self.ngram_buckets).T)

    def _segment(self, features: Tensor) -> Segment:
        return Segment(self.name, features, targets=features[:, 0])


class FeatureStream:
    """The feature rows of a text that grows at its end, as `TextModality.encode` gives them for the whole.

    Made by `TextModality.stream`.
    """

    def __init__(self, words: EncodingStream, before: Ids, ngram_buckets: int) -> None:
        self._words = words
        self._before = np.concatenate([_NOTHING_BEFORE, before])[-2:]
        self._ngram_buckets = ngram_buckets

    def push(self, char_id: int) -> tuple[int, ...]:
        """Read one more char id, a byte token included.

        Returns:
            The rest of its feature row: word id, previous-word id, and what else the modality has.
        Raises:
            ValueError: if the id is not in the vocabulary.
        """
        row = self._words.push(char_id)
        if not self._ngram_buckets:
            return row
        from datamodules.text.hashing import ngram_buckets

        char_ids = np.array([char_id])
        ngrams = ngram_buckets(char_ids, self._before, self._ngram_buckets)[0]
        self._before = np.concatenate([self._before[1:], char_ids])
        return (*row, *ngrams.tolist())
