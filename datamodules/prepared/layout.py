"""The five bytes of a token: char id, causal word id, and where the word began - from which the rest follows.

    char       uint16  char id
    word_low   uint16  low 16 bits of the causal word id
    word_high  uint8   low bits: high bits of the word id; remaining bits: code of the word's beginning

Notable:
- Previous-word ids are not stored. The previous word of token i is what the segmentation of the text
  up to `starts[i] - 1` ends with, so it follows from the ids of that one earlier token.
- A code says where to look: 0, 1, 2, ... tokens back the word began; the highest code says that nothing
  stands before it (previous id 0), the second highest that the token before has the same previous word
  (which bridges any distance in a long run of letters). Texts can therefore lie one behind the other
  without bounds, and reading a window looks back to the beginning of one word and never into another text.
- Packing checks every token: a text whose previous ids would come out otherwise (a listed word longer
  than the codes reach) is refused, never stored wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from datamodules.text.tokenizer import DualTokenizer, Encoding
from datamodules.text.vocabulary import Ids
from onn_lightning.compiled import kernel

BYTES_PER_TOKEN = 5
_MAX_CHAR_IDS = 1 << 16
_LOW_BITS = 16
_HIGH_BYTE = 8
_LEAST_CODE_BITS = 3


class PackingError(ValueError):
    """A text whose ids the packed form cannot give back."""


@dataclass(frozen=True)
class PackedTokens:
    """Columns of packed tokens, equally long.

    Args:
        char: [n] uint16.
        word_low: [n] uint16.
        word_high: [n] uint8.
    """

    char: npt.NDArray[np.uint16]
    word_low: npt.NDArray[np.uint16]
    word_high: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.char)


@dataclass(frozen=True)
class TokenLayout:
    """How the ids of one tokenizer are packed.

    Args:
        vocab_size: number of char ids.
        num_words: bound of the word ids; a lone character before a word has the id num_words + char id.
    Raises:
        ValueError: if the ids do not fit.
    """

    vocab_size: int
    num_words: int

    def __post_init__(self) -> None:
        if not 0 < self.vocab_size <= _MAX_CHAR_IDS:
            raise ValueError(
                f"a prepared data set holds at most {_MAX_CHAR_IDS:,} char ids, the tokenizer has "
                f"{self.vocab_size:,}: use a smaller inventory, rare characters fall back to bytes"
            )
        most_words = 1 << (_LOW_BITS + _HIGH_BYTE - _LEAST_CODE_BITS)
        if not 0 < self.num_words <= most_words:
            raise ValueError(
                f"a prepared data set holds at most {most_words:,} word ids, the tokenizer has "
                f"{self.num_words:,}: set its `max_words` to {most_words - 1:,} or less"
            )

    @classmethod
    def of(cls, tokenizer: DualTokenizer) -> TokenLayout:
        """The layout for a tokenizer."""
        return cls(tokenizer.vocab_size, tokenizer.num_words)

    @cached_property
    def high_bits(self) -> int:
        """Bits of the word id that stand in `word_high`."""
        return max(0, (self.num_words - 1).bit_length() - _LOW_BITS)

    @property
    def longest_word(self) -> int:
        """Listed words of up to this many tokens can always be packed (runs of letters: of any length)."""
        return (1 << (_HIGH_BYTE - self.high_bits)) - 2

    def pack(self, encoding: Encoding) -> PackedTokens:
        """Pack the encoding of a whole text.

        Args:
            encoding: with its `starts`.
        Raises:
            PackingError: if its ids are not this layout's, or the previous ones do not follow from the rest.
        """
        if encoding.starts is None:
            raise PackingError("only an encoding that keeps its `starts` can be packed: encode the text anew")
        length = len(encoding)
        packed = PackedTokens(
            np.empty(length, np.uint16), np.empty(length, np.uint16), np.empty(length, np.uint8)
        )
        columns = (encoding.char_ids, encoding.word_ids, encoding.previous_word_ids, encoding.starts)
        failed = _pack(
            *columns,
            self.vocab_size,
            self.num_words,
            self.high_bits,
            packed.char,
            packed.word_low,
            packed.word_high,
        )
        if failed < length:
            char_id, word_id, previous, start = (int(column[failed]) for column in columns)
            raise PackingError(
                f"token {failed} cannot be packed (char id {char_id} of {self.vocab_size}, word id "
                f"{word_id} of {self.num_words}, previous {previous}, begins at {start}): its ids are of "
                f"another tokenizer, or it ends a listed word of more than {self.longest_word} characters, "
                "which must be taken off the word list"
            )
        return packed

    def unpack(self, tokens: PackedTokens, start: int, stop: int) -> Encoding:
        """Unpack the tokens `start..stop - 1`, which may begin anywhere in a text.

        Args:
            tokens: whole texts, one behind the other.
            start, stop: 0 <= start <= stop <= len(tokens).
        """
        columns = np.empty((3, stop - start), np.int64)
        packed = (tokens.char, tokens.word_low, tokens.word_high)
        unpack(*packed, 0, 0, 0, start, self.num_words, self.high_bits, columns)
        return Encoding(columns[0], columns[1], columns[2])


@kernel
def _pack(
    char_ids: Ids,
    word_ids: Ids,
    previous_word_ids: Ids,
    starts: Ids,
    vocab_size: int,
    num_words: int,
    high_bits: int,
    char: npt.NDArray[np.uint16],
    word_low: npt.NDArray[np.uint16],
    word_high: npt.NDArray[np.uint8],
) -> int:
    """Write the packed columns.

    Returns:
        Index of the first token that cannot be packed; n where all can.
    """
    nothing = (1 << (8 - high_bits)) - 1
    as_before = nothing - 1
    for i in range(len(char_ids)):
        char_id, word_id, start = char_ids[i], word_ids[i], starts[i]
        if not (0 <= char_id < vocab_size and 0 <= word_id < num_words and 0 <= start <= i):
            return i
        if start == 0:
            code, previous = nothing, 0
        elif i - start < as_before:
            code, previous = i - start, word_ids[start - 1]
            if previous == 0:
                previous = num_words + char_ids[start - 1]
        else:
            code, previous = as_before, previous_word_ids[i - 1]
        if previous != previous_word_ids[i]:
            return i
        char[i] = char_id
        word_low[i] = word_id & 0xFFFF
        word_high[i] = (code << high_bits) | (word_id >> 16)
    return len(char_ids)


@kernel
def unpack(
    char: npt.NDArray[np.uint16],
    word_low: npt.NDArray[np.uint16],
    word_high: npt.NDArray[np.uint8],
    char_at: int,
    low_at: int,
    high_at: int,
    first: int,
    num_words: int,
    high_bits: int,
    columns: Ids,
) -> None:
    """Unpack as many tokens as there is room for.

    One simple loop a step, since those become vector instructions; what is rare waits for the end.

    Args:
        char, word_low, word_high: arrays that hold the packed columns of whole texts.
        char_at, low_at, high_at: where in them token 0 stands (or would).
        first: the first token to unpack.
        num_words, high_bits: of the layout.
        columns: [3, n] int64, written: char ids, word ids, previous-word ids.
    """
    high_mask = np.int32((1 << high_bits) - 1)
    nothing = (1 << (8 - high_bits)) - 1
    as_before = nothing - 1
    reach = nothing + 1  # no code looks further back
    first_lone = np.int32(num_words)
    length = columns.shape[1]
    char_ids, word_ids, previous_word_ids = columns[0], columns[1], columns[2]
    char, word_low, word_high = char[char_at:], word_low[low_at:], word_high[high_at:]
    chars, lows = char[first : first + length], word_low[first : first + length]
    highs = word_high[first : first + length]

    last = np.empty(reach + length, np.int32)  # [reach + n] every token as the last of a previous word
    for i in range(max(0, reach - first), reach):
        at = first - reach + i
        word_id = np.int32(word_low[at]) | ((np.int32(word_high[at]) & high_mask) << 16)
        last[i] = word_id if word_id else first_lone + np.int32(char[at])
    inside = last[reach:]
    for i in range(length):
        char_ids[i] = chars[i]
    for i in range(length):
        word_ids[i] = np.int32(lows[i]) | ((np.int32(highs[i]) & high_mask) << 16)
    for i in range(length):
        word_id = np.int32(lows[i]) | ((np.int32(highs[i]) & high_mask) << 16)
        inside[i] = word_id if word_id else first_lone + np.int32(chars[i])
    highest = np.uint8(0)
    for i in range(length):
        highest = max(highest, highs[i])
    for i in range(length):  # unsigned indices spare the test for negative ones
        previous_word_ids[i] = last[np.uint64(i + nothing - np.int64(highs[i] >> high_bits))]

    rare = as_before << high_bits
    if highest < rare:
        return
    if length and highs[0] >= rare:
        previous_word_ids[0] = _first_previous(char, word_low, word_high, first, num_words, high_bits)
    for i in range(1, length):
        if highs[i] >= rare:
            is_first = highs[i] >> high_bits == nothing
            previous_word_ids[i] = 0 if is_first else previous_word_ids[i - 1]


@kernel
def _first_previous(
    char: npt.NDArray[np.uint16],
    word_low: npt.NDArray[np.uint16],
    word_high: npt.NDArray[np.uint8],
    at: int,
    num_words: int,
    high_bits: int,
) -> int:
    """Previous-word id of one token whose code may say "as the token before"."""
    nothing = (1 << (8 - high_bits)) - 1
    while at > 0 and word_high[at] >> high_bits == nothing - 1:
        at -= 1
    before = at - np.int64(word_high[at] >> high_bits) - 1
    if word_high[at] >> high_bits >= nothing - 1 or before < 0:  # the latter in a crafted file alone
        return 0
    high = np.int64(word_high[before]) & ((1 << high_bits) - 1)
    word_id = int(np.int64(word_low[before]) | (high << 16))
    return word_id if word_id else num_words + int(char[before])
