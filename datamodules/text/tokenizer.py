"""`DualTokenizer`: every character an id of its own and, beside it, the ids of words.

Notable:
- Three columns, equally long: char id, word id, id of the word before. By default all of them
  depend on the past alone (see `segmentation`): an ordinary word id would give the next characters
  of an unfinished word away.
- Lossless for every string that encodes to UTF-8; nothing is normalised.
- A stream gives the same ids one token at a time, for generation.
- Importing this costs little: numba is loaded when a tokenizer is made, jieba never runs.
- A tokenizer keeps the bytes of the files it was made from, so that a checkpoint can carry them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from datamodules.text.vocabulary import CharacterVocabulary, Ids
from datamodules.text.words import WordList, jieba_dictionary

if TYPE_CHECKING:
    from datamodules.text.segmentation import ForwardStream, ForwardTable

_SOURCES = ("vocabulary", "words", "user_words")
MAX_HASHED_WORDS = 2**24


@dataclass(frozen=True)
class Encoding:
    """A text as three columns of the same length.

    Args:
        char_ids: [n] int64; characters, or the bytes of a character outside the inventory.
        word_ids: [n] int64 in 0..num_words-1; 0: a lone character, in no known word.
        previous_word_ids: [n] int64 in 0..word_vocab_size-1; 0: nothing before; from num_words on:
            num_words + char id of a lone character.
        starts: [n] int64, where the word of each token begins; None where they were not kept.
    """

    char_ids: Ids
    word_ids: Ids
    previous_word_ids: Ids
    starts: Ids | None = None

    def __len__(self) -> int:
        return len(self.char_ids)

    def full_context(self) -> Encoding:
        """The same text with the words of its best segmentation as a whole, from the same forward table.

        Such ids tell of later characters: only for segments that carry no loss and precede all that do.

        Raises:
            ValueError: if the word starts were not kept, or this is not a text from its beginning.
        """
        table = self.table().full_context()
        return Encoding(self.char_ids, table.word_ids, table.previous_word_ids, table.starts)

    def full_context_word_ids(self) -> Ids:
        """The word ids of `full_context` alone."""
        return self.table().full_context_word_ids()

    def table(self) -> ForwardTable:
        """The forward table behind the ids.

        Raises:
            ValueError: as `full_context`.
        """
        from datamodules.text.segmentation import ForwardTable  # loads numba

        if self.starts is None or (len(self) and self.starts[0] != 0):
            raise ValueError(
                "full context needs the encoding of a text from its beginning, with the starts of its words"
            )
        return ForwardTable(self.word_ids, self.previous_word_ids, self.starts)


class DualTokenizer:
    """Characters and words.

    Args:
        vocabulary: path of a `tokenizer.json` of characters; None: the built-in inventory.
        words: path of a word list in jieba's format (`word count [tag]` lines, UTF-8); None: jieba's
            dictionary.
        user_words: path of words to add or change, counts optional.
        max_words: keep this many words, user words first, then the most frequent; None: all.
        hashed_words: number of word ids, after those of the words, that the rest shares by its hash: words
            beyond `max_words` (the segmenter then knows them all the same), and runs of letters and
            digits that are no known word, by what of them is written so far. 0: the former are unknown, a
            run has the id of the longest known word that it starts with.
    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file cannot be used; the message names it, the line and the remedy.
    """

    def __init__(
        self,
        vocabulary: str | None = None,
        words: str | None = None,
        user_words: str | None = None,
        max_words: int | None = None,
        hashed_words: int = 0,
    ) -> None:
        paths = zip(_SOURCES, (vocabulary, words, user_words), strict=True)
        files = {source: _read(source, path) for source, path in paths if path is not None}
        self._set_up(files, max_words, hashed_words)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], max_words: int | None = None, hashed_words: int = 0
    ) -> DualTokenizer:
        """Make a tokenizer from the contents of its files instead of their paths.

        Args:
            files: contents by the names `vocabulary`, `words`, `user_words`; absent: built-in.
            max_words, hashed_words: as in the constructor.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(dict(files), max_words, hashed_words)
        return tokenizer

    def _set_up(self, files: dict[str, bytes], max_words: int | None, hashed_words: int) -> None:
        from datamodules.text.segmentation import RULES_VERSION, Segmenter  # loads numba

        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}")
        if not 0 <= hashed_words <= MAX_HASHED_WORDS:
            raise ValueError(f"hashed_words must be in 0..{MAX_HASHED_WORDS}, got {hashed_words}")
        self.files = files
        """Contents of the files that are not built in, by argument name."""
        self.max_words = max_words
        self.hashed_words = hashed_words
        self.vocabulary = (
            CharacterVocabulary.from_json(files["vocabulary"], source="the vocabulary file")
            if "vocabulary" in files
            else CharacterVocabulary.builtin()
        )
        words = files["words"] if "words" in files else jieba_dictionary()
        user_words = files.get("user_words", b"")
        options = f"{max_words} {hashed_words}" if hashed_words else f"{max_words}"
        digest = hashlib.sha256(f"{len(words)} {len(user_words)} {options}\n".encode())
        digest.update(words)
        digest.update(user_words)
        words_fingerprint = digest.hexdigest()[:16]
        self.segmenter = Segmenter(
            self.vocabulary,
            lambda: WordList.read(words, user_words, max_words, keep_cut=hashed_words > 0),
            words_fingerprint,
            hashed_words,
        )
        self.fingerprint = f"{self.vocabulary.fingerprint}-{words_fingerprint}-{RULES_VERSION}"
        """Names everything that ids depend on: characters, words, rules."""

    def with_files(self, paths: Mapping[str, str], max_words: int | None) -> DualTokenizer:
        """The same tokenizer with some files exchanged.

        Args:
            paths: of the new files, by the names `vocabulary`, `words`, `user_words`.
            max_words: as in the constructor.
        Raises:
            FileNotFoundError, ValueError: as the constructor.
        """
        files = {**self.files, **{source: _read(source, path) for source, path in paths.items()}}
        return DualTokenizer.from_files(files, max_words, self.hashed_words)

    def __getstate__(self) -> dict[str, Any]:
        # The trie comes back from the cache.
        return {"files": self.files, "max_words": self.max_words, "hashed_words": self.hashed_words}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(**state)

    @property
    def vocab_size(self) -> int:
        """Number of char ids."""
        return len(self.vocabulary)

    @property
    def num_words(self) -> int:
        """Bound of `word_ids`: the lone character, all words and all buckets."""
        return self.segmenter.num_words

    @property
    def word_vocab_size(self) -> int:
        """Bound of both word columns: `num_words` + `vocab_size`."""
        return self.segmenter.word_vocab_size

    def encode(self, text: str, full_context: bool = False) -> Encoding:
        """Encode a text.

        Args:
            text: any string that encodes to UTF-8.
            full_context: take the words from the best segmentation of the whole text. Such ids tell
                of later characters: only for segments that carry no loss and precede all that do.
        Raises:
            BadSampleError: if the text holds a lone surrogate.
        """
        char_ids = self._char_ids(text)
        table = self.segmenter.table(char_ids)
        encoding = Encoding(char_ids, table.word_ids, table.previous_word_ids, table.starts)
        return encoding.full_context() if full_context else encoding

    def decode(self, char_ids: Iterable[int] | npt.NDArray[Any]) -> str:
        """Text of char ids; special tokens vanish, bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        return self.vocabulary.decode(char_ids)

    def segment(self, text: str) -> list[str]:
        """The words of the best segmentation of the whole text, as they stand in it.

        Raises:
            BadSampleError: if the text holds a lone surrogate.
        """
        char_ids = self._char_ids(text)
        firsts = self.segmenter.table(char_ids).full_context().firsts()
        bounds = [*firsts.tolist(), len(char_ids)]
        return [self.decode(char_ids[start:end]) for start, end in pairwise(bounds)]

    def stream(self, prefix: str = "") -> EncodingStream:
        """An encoder that is fed char id by char id, from after a prefix.

        Raises:
            BadSampleError: if the prefix holds a lone surrogate.
        """
        stream = self.segmenter.stream()
        stream.advance(self._char_ids(prefix))
        return EncodingStream(stream)

    def _char_ids(self, text: str) -> Ids:
        try:
            return self.vocabulary.encode(text)
        except UnicodeEncodeError as error:
            _refuse_surrogate(text, error.start)


class EncodingStream:
    """Incremental encoder: after every `push` the ids equal those of `encode` on the text so far.

    Made by `DualTokenizer.stream`.
    """

    def __init__(self, stream: ForwardStream) -> None:
        self._stream = stream

    def push(self, char_id: int) -> tuple[int, int]:
        """Read one more char id, a byte token included.

        Returns:
            Its word id and previous-word id.
        Raises:
            ValueError: if the id is not in the vocabulary.
        """
        row = self._stream.advance(np.array([char_id], dtype=np.int64))
        return int(row.word_ids[0]), int(row.previous_word_ids[0])


def _read(source: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise type(error)(f"{source} file '{path}' cannot be read: {error.strerror}") from error


def _refuse_surrogate(text: str, position: int) -> NoReturn:
    from onn_lightning.modality import BadSampleError  # loads torch

    raise BadSampleError(
        f"text has a lone surrogate U+{ord(text[position]):04X} at character {position}, which UTF-8 cannot "
        "encode: read the file with errors='replace', or join surrogate pairs with "
        "text.encode('utf-16', 'surrogatepass').decode('utf-16')"
    )
