"""Hashes of character sequences, one character at a time: the same on every machine, for ever.

Notable:
- A running hash is advanced by `mixed` and turned into a bucket by `bucket`: a causal id of a sequence that
  grows costs one step a character.
- Ids made here are what tables were trained with: changing a constant makes every such table worthless
  (a test holds the values).

Source: FNV-1a over whole code points, then the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onn_lightning.compiled import kernel

SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)

NGRAM_SIZES = (2, 3)
"""Lengths of the character sequences that have hashed tables of their own."""


@kernel
def mixed(state: np.uint64, code: int) -> np.uint64:
    """The hash of a sequence one code (0 or more) longer."""
    return (state ^ np.uint64(code)) * _PRIME


@kernel
def bucket(state: np.uint64, num_buckets: int) -> np.int64:
    """Number in 0..num_buckets-1 of a sequence."""
    state = (state ^ (state >> _30)) * _FIRST
    state = (state ^ (state >> _27)) * _SECOND
    return np.int64((state ^ (state >> _31)) % np.uint64(num_buckets))


@kernel
def buckets_of(
    codes: npt.NDArray[np.uint32], ends: npt.NDArray[np.int64], num_buckets: int
) -> npt.NDArray[np.int64]:
    """Buckets of several sequences.

    Args:
        codes: the sequences, one after the other.
        ends: [n] where each ends.
        num_buckets: at least 1.
    """
    result = np.empty(len(ends), dtype=np.int64)
    begin = 0
    for index in range(len(ends)):
        state = SEED
        for place in range(begin, ends[index]):
            state = mixed(state, codes[place])
        result[index] = bucket(state, num_buckets)
        begin = ends[index]
    return result


@kernel
def ngram_buckets(
    char_ids: npt.NDArray[np.int64], before: npt.NDArray[np.int64], num_buckets: int
) -> npt.NDArray[np.int64]:
    """Buckets of the last 2 and the last 3 characters at every token.

    Args:
        char_ids: [n].
        before: [2] the char ids before them; a negative one: there is none.
        num_buckets: at least 1.
    Returns:
        [n, 2].
    """
    result = np.empty((len(char_ids), 2), dtype=np.int64)
    second, first = before[0], before[1]
    for i in range(len(char_ids)):
        state = mixed(mixed(SEED, char_ids[i]), first + 1)  # 0: no character there
        result[i, 0] = bucket(state, num_buckets)
        result[i, 1] = bucket(mixed(state, second + 1), num_buckets)
        second, first = first, char_ids[i]
    return result
