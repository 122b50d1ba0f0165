"""Windows of tokens at random offsets: prepared shards against a bare numpy memmap.

Both sides read the same real text from the page cache and end with int64 arrays of their own. The bare side
holds every column as it is used (uint16 characters, uint32 word ids, uint32 previous-word ids: 10 bytes a
token) and does nothing but copy, without the overhead of numpy's memmap class; a shard holds 5 bytes a
token, finds the place, and derives the previous words. The two run interleaved at the same offsets;
counted is processor time, so that whatever else runs on the machine decides little.

    from benchmarks.data_windows import measure_windows
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.prepared import Shard, ShardWriter, TokenLayout
from datamodules.text import DualTokenizer
from onn_lightning.cli.allocator import keep_freed_memory

LENGTH = 2048
_ROUNDS = 41
_WINDOWS_PER_ROUND = 400
_COPIED_AT_ONCE = 1 << 20
_DTYPES = {"char_ids": np.uint16, "word_ids": np.uint32, "previous_word_ids": np.uint32}


@dataclass(frozen=True)
class WindowSpeed:
    """How fast windows of `LENGTH` tokens are read.

    Args:
        ratio: speed from the shards over that of the memmap, all three columns; median over rounds.
        character_ratio: the same, char ids alone.
        microseconds: of processor time of a window from the shards, all three columns; median.
        bytes_per_character: of shards and indexes on disk.
        tokens: in the shards.
    """

    ratio: float
    character_ratio: float
    microseconds: float
    bytes_per_character: float
    tokens: int


def measure_windows(texts: Sequence[Path], tokens: int = 32_000_000, seed: int = 0) -> WindowSpeed:
    """Write shards and memmaps of the same text and read windows from both.

    Args:
        texts: UTF-8 files of prose, each a document; repeated until there are enough tokens.
        tokens: how many at least; more than the processor's caches hold.
        seed: of the offsets.
    """
    keep_freed_memory()  # as `onn fit` does; for both sides
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        characters, shards = _write_shards(folder / "shards", texts, tokens)
        bare = _Bare(folder / "bare", shards)
        size = sum(path.stat().st_size for path in (folder / "shards").iterdir())
        generator = np.random.default_rng(seed)
        lengths = [shard.index.tokens for shard in shards]
        ratio, seconds = _compare(
            [shard.token_window for shard in shards], bare.token_window, lengths, generator
        )
        character_ratio, _ = _compare(
            [shard.character_window for shard in shards], bare.character_window, lengths, generator
        )
        return WindowSpeed(
            ratio=ratio,
            character_ratio=character_ratio,
            microseconds=seconds * 1e6,
            bytes_per_character=size / characters,
            tokens=sum(lengths),
        )


def _write_shards(folder: Path, texts: Sequence[Path], tokens: int) -> tuple[int, list[Shard]]:
    """Returns: number of characters, the shards."""
    tokenizer = DualTokenizer()
    layout = TokenLayout.of(tokenizer)
    contents = [path.read_text("utf-8") for path in texts]
    encodings = [tokenizer.encode(content) for content in contents]
    repeats = -(-tokens // sum(map(len, encodings)))
    with ShardWriter(folder, "00000", layout, max_shard_bytes=tokens * 2) as writer:  # three of them
        for number in range(repeats):
            for path, encoding in zip(texts, encodings, strict=True):
                writer.add(f"{path.name}: {number}", [("text", encoding, True)])
    return repeats * sum(map(len, contents)), [Shard(path, layout) for path in writer.shards]


class _Bare:
    """The columns of each shard as plain files; a window is a copy to int64."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        folder.mkdir()
        self._columns = [
            [self._column(folder / f"{number}-{name}", shard, name) for name in _DTYPES]
            for number, shard in enumerate(shards)
        ]

    @staticmethod
    def _column(path: Path, shard: Shard, name: str) -> np.ndarray:
        tokens = shard.index.tokens
        with path.open("wb") as file:
            for at in range(0, tokens, _COPIED_AT_ONCE):
                window = shard.token_window(at, min(_COPIED_AT_ONCE, tokens - at))
                file.write(getattr(window, name).astype(_DTYPES[name]).tobytes())
        return np.asarray(np.memmap(path, _DTYPES[name], mode="r"))

    def token_window(self, shard: int, offset: int, length: int) -> tuple[np.ndarray, ...]:
        """All three columns."""
        chars, words, previous = self._columns[shard]
        end = offset + length
        return (
            chars[offset:end].astype(np.int64),
            words[offset:end].astype(np.int64),
            previous[offset:end].astype(np.int64),
        )

    def character_window(self, shard: int, offset: int, length: int) -> np.ndarray:
        """Char ids alone."""
        return self._columns[shard][0][offset : offset + length].astype(np.int64)


def _compare(
    reads: Sequence[Callable[[int, int], Any]],
    read_bare: Callable[[int, int, int], Any],
    lengths: Sequence[int],
    generator: np.random.Generator,
) -> tuple[float, float]:
    """Returns: median ratio of the speeds, median seconds of a window from the shards."""
    ratios, all_seconds = [], []
    for round_number in range(_ROUNDS + 1):
        chosen = generator.integers(0, len(lengths), _WINDOWS_PER_ROUND)
        offsets = generator.integers(0, np.array(lengths)[chosen] - LENGTH)
        # a fresh list for each: the first reader drives its numbers out of the caches
        places = list(zip(chosen.tolist(), offsets.tolist(), strict=True))
        start = time.thread_time()
        for number, offset in places:
            read_bare(number, offset, LENGTH)
        bare_seconds = time.thread_time() - start
        places = list(zip(chosen.tolist(), offsets.tolist(), strict=True))
        start = time.thread_time()
        for number, offset in places:
            reads[number](offset, LENGTH)
        seconds = time.thread_time() - start
        if round_number:  # the first one compiles, maps and checks
            ratios.append(bare_seconds / seconds)
            all_seconds.append(seconds / _WINDOWS_PER_ROUND)
    return statistics.median(ratios), statistics.median(all_seconds)
