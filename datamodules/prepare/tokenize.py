"""`TokenizeStep`: the documents of a task -> dual tokenizer -> shards of a prepared data set.

Notable:
- The shards of task 7 are `00007-000.arrow`, `00007-001.arrow`, ...; a task that is killed and run again
  removes what it left and writes the same bytes.
- The tokenizer is made in the worker, from plain arguments: the step itself is small and picklable.
- A document that cannot be stored (a lone surrogate, a listed word that is too long to pack, nothing in it)
  is dropped, counted and named; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datatrove.data import Document

from datamodules.prepare.document import Item, unpack
from datamodules.prepare.records import StepRecord
from datamodules.prepare.step import RecordedStep
from datamodules.prepared.layout import PackingError, TokenLayout
from datamodules.prepared.writer import MAX_SHARD_BYTES, ShardWriter
from datamodules.text.tokenizer import DualTokenizer, Encoding

SURROGATE = "text with a lone surrogate"
TOO_LONG_A_WORD = "listed word too long to pack"
EMPTY = "no tokens and no media"


class TokenizeStep(RecordedStep):
    """Encodes texts and writes shards; a last step, though it passes its documents on.

    Args:
        folder: of the shards.
        vocabulary, words, user_words, max_words, hashed_words: of the tokenizer, as for `DualTokenizer`.
        max_shard_bytes: a shard is closed when it is at least this large.
    """

    name = "tokenize"

    def __init__(
        self,
        folder: str | Path,
        vocabulary: str | None = None,
        words: str | None = None,
        user_words: str | None = None,
        max_words: int | None = None,
        hashed_words: int = 0,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.vocabulary = vocabulary
        self.words = words
        self.user_words = user_words
        self.max_words = max_words
        self.hashed_words = hashed_words
        self.max_shard_bytes = max_shard_bytes

    def tokenizer(self) -> DualTokenizer:
        """Make the tokenizer; the manifest needs it, too."""
        return DualTokenizer(self.vocabulary, self.words, self.user_words, self.max_words, self.hashed_words)

    def process(self, documents: Iterable[Document], record: StepRecord, task: int) -> Iterator[Document]:
        """Write the documents of one task.

        Raises:
            OSError: if the disk is full; shards that were finished before are intact.
        """
        tokenizer = self.tokenizer()
        layout = TokenLayout.of(tokenizer)
        documents = iter(documents)
        first = list(islice(documents, 1))  # a task reads one source
        source = first[0].metadata["source"] if first else ""
        with ShardWriter(self.folder, f"{task:05d}", layout, self.max_shard_bytes, source=source) as writer:
            for document in chain(first, documents):
                with self.track_time():
                    reason = self._write(document, tokenizer, writer)
                if reason is None:
                    record.kept += 1
                    yield document
                else:
                    record.drop(reason, _printable(document.id), _printable(document.text))

    def _write(self, document: Document, tokenizer: DualTokenizer, writer: ShardWriter) -> str | None:
        """Write one document.

        Returns:
            Why it was dropped, None if it was not.
        """
        try:
            encoded = [(item.modality, _data(item, tokenizer), item.supervised) for item in unpack(document)]
        except UnicodeEncodeError:
            return SURROGATE
        texts = [data for _, data, _ in encoded if isinstance(data, Encoding)]
        tokens = sum(map(len, texts))
        if not tokens and len(texts) == len(encoded):
            return EMPTY
        try:
            writer.add(document.id, encoded)
        except PackingError:
            return TOO_LONG_A_WORD
        self.stat_update("tokens", value=tokens)
        return None


def _data(item: Item, tokenizer: DualTokenizer) -> Any:
    """What is stored of an item.

    Raises:
        UnicodeEncodeError: if its text has a lone surrogate.
    """
    if item.text is not None:
        if item.modality != "text":
            return item.text  # a plug-in's own form of text is plain data
        item.text.encode()  # the tokenizer's own refusal would load torch
        return tokenizer.encode(item.text)
    return item.value if item.media is None else item.media


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
