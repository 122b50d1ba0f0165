"""`TextWriter`: chosen ids become text to show and tokens for the model to read on.

Notable:
- What generation needs of the text modality, beyond `Modality`, is two methods, written down in
  `WritableModality`; of its head, `logits` and `num_bytes`. No class is named: any modality called
  "text" that offers them can be written.
- The other features of a generated character (its word ids) come from the same stream that has read the
  prefix, so that the model reads them as it would have in training.
- A character spelled in bytes is shown once it is complete; broken ones become U+FFFD.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from onn_lightning.batch import Segment

if TYPE_CHECKING:
    from onn_lightning.module import OmniModule

TEXT = "text"
"""Name of the modality that can be written."""


class TextStream(Protocol):
    """Features of a text that grows at its end."""

    def push(self, char_id: int) -> tuple[int, ...]:
        """Take the next character (or byte) id; returns the rest of its feature row."""


@runtime_checkable
class WritableModality(Protocol):
    """What the modality called "text" offers for generation."""

    def stream(self, prefix: str) -> TextStream:
        """Features of what follows `prefix`, a text without characters outside UTF-8."""

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 bytes that ids stand for; none for special symbols."""

    def closing_segment(self) -> Segment | None:
        """The token that ends a document; its feature row begins with its id."""


@runtime_checkable
class WritingHead(Protocol):
    """What its head offers."""

    num_bytes: Tensor

    def logits(self, hidden: Tensor) -> Tensor:
        """[D] -> [V]."""


def writable_text(module: OmniModule) -> tuple[WritableModality, WritingHead]:
    """The text modality of a module and its head.

    Raises:
        ValueError: if the module has no text modality, or one that cannot be written.
    """
    modality = module.modalities.get(TEXT)
    if modality is None:
        raise ValueError(
            f"text is generated, but the model knows only {sorted(module.modalities)}: train it with a "
            f"modality '{TEXT}'"
        )
    head = dict(module.heads.items()).get(TEXT)
    if not isinstance(modality, WritableModality) or not isinstance(head, WritingHead):
        raise ValueError(
            f"{type(modality).__name__} cannot be written: generation needs its methods `stream` and "
            "`to_bytes`, and a head with `logits` and `num_bytes` (see onn_lightning.generation.writer)"
        )
    return modality, head


class TextWriter:
    """Writes on after a text.

    Args:
        modality, head: as `writable_text` returns them.
        prefix: text of the segment that is continued, "" for a fresh one.
    Attributes:
        allowed: [V] bool, on the CPU: characters, bytes and the end; never padding or another special
            symbol.
    """

    def __init__(self, modality: WritableModality, head: WritingHead, prefix: str) -> None:
        self._modality = modality
        self._head = head
        self._stream = modality.stream(prefix)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.allowed = head.num_bytes.cpu() > 0
        closing = modality.closing_segment()
        self._end_id = None if closing is None else int(closing.features.flatten()[0])
        if self._end_id is not None:
            self.allowed[self._end_id] = True

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[D] hidden state -> [V] logits of the id that follows."""
        return self._head.logits(hidden)

    def is_end(self, char_id: int) -> bool:
        """Whether the id ends the document."""
        return char_id == self._end_id

    def token(self, char_id: int) -> Segment:
        """The id as the model reads it: one feature row."""
        return Segment(TEXT, torch.tensor([[char_id, *self._stream.push(char_id)]]))

    def text(self, char_id: int) -> str:
        """What the id completes: a character, "" within one spelled in bytes."""
        return self._decoder.decode(self._modality.to_bytes([char_id]))

    def flush(self) -> str:
        """U+FFFD where the text ends within a character spelled in bytes, else ""."""
        return self._decoder.decode(b"", final=True)
